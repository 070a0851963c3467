"""Run one job in the training process, from the files in the job folder to a verified checkpoint.

The bytes of the checkpoint depend only on the request, the model and the data, not on how often the run was
interrupted. For that, everything that a later step needs from an earlier one is stored exactly in the saved state,
scores included. If the worker ends training early, the current step is finished and the remaining stages run.
"""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

# cuBLAS reads this at start; without it, its sums differ between runs.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from jaxtyping import Int
from torch import Tensor

from core.stages import Stage
from seft import stages
from seft.checkpoint.export import round_weights
from seft.checkpoint.facts import Facts
from seft.checkpoint.pack import load_pruned, save_pruned
from seft.config import RepairConfig, Retain
from seft.data import records
from seft.data.packing import Packed, pack
from seft.data.text import encode, evaluation_windows, named, split_described
from seft.devices import choose_device
from seft.errors import Cancelled, EvaluateError
from seft.evaluate import perplexity
from seft.models.load import Loaded, load, load_tokenizer
from seft.models.source import ModelSource, downloaded, find
from seft.repair import Repair
from seft.repair.state import outdated
from seft.report import Evolved, Judged, Progress, Report, Reporter, Step
from seft.retain import load_retained, opening_tokens, save_retained, split_retained
from worker import disk_space, usage
from worker.meter import Meter
from worker.protocol import (
    DATA,
    ENOUGH,
    HELD_OUT_DATA,
    RESULT,
    RESUME,
    RETAIN_DATA,
    STATE,
    Finished,
    Measured,
    Message,
    Progressed,
    Reading,
    Refused,
    Saved,
    Scored,
    Task,
    TopologyEvolved,
)

PRUNED, SCORES, RETAINED = "pruned.safetensors", "scores.json", "retained.safetensors"
PRUNED_BYTES = 4
"""Maximum bytes on disk per weight in a saved state."""

READING_SECONDS = 1.0
"""Seconds between two messages about the records that are read."""


@dataclass(frozen=True, slots=True)
class Text:
    """The tokenized datasets: training records, held-out records, calibration text from the training records."""

    calibration: Int[Tensor, "windows tokens"]
    training: Packed | None
    held_out: Packed
    opening: list[int]
    """What the dense model starts with if it writes the text to retain."""
    retained: Packed | None
    """Windows of the dataset to retain, if there is one and no saved state has them."""


class Pipeline:
    """Runs one job.

    `send` sends a message to the worker. `stopping` is called often. When it returns True, the run saves its state
    and ends.
    """

    def __init__(self, folder: Path, task: Task, send: Callable[[Message], None], stopping: Callable[[], bool]) -> None:
        self.folder, self.task, self.send, self.stopping = folder, task, send, stopping
        self.prune, self.repair = task.spec.prune_config(), task.spec.repair_config(task.micro_batch)
        self.evaluate = task.spec.evaluate_config()
        self.retained: Packed | None = None
        self.meter = Meter(task.spec)
        self.scores: dict[str, float] = {}
        self.step = task.resume or 0
        self.stage: Stage | None = None
        self.reported = 0.0
        """Time of the last report about the records that are read."""
        self.state_bytes = 0
        """Size of the newest training state in bytes."""

    def run(self) -> None:
        """Run all stages. Raises Cancelled if `stopping` returns True, and SeftError if the job cannot be done."""
        configure_torch(self.task.threads)
        self._progress(Stage.LOADING, 0.0)
        source = self._source()
        text = self._read(source)
        self._progress(Stage.LOADING, 0.5)
        loaded = load(source, device=self._device)
        self.meter.expect(self.task.speed, source)
        self._progress(Stage.LOADING, 1.0)
        if self.task.resume is None:
            self._prune(loaded, text)
        else:
            self._resume(loaded)
        if self._enough and self.step == 0:
            self.repair = None
        sha256 = self.task.dataset_sha256
        facts = stages.pruned_facts(loaded, self.prune, sha256 if stages.reads_calibration(self.prune) else None)
        self.prune = facts.prune
        if text.training and self.repair:
            result = self._repair(loaded, text, text.training, self.repair)
            facts = stages.repaired_facts(facts, self.repair, result, teacher=source, dataset_sha256=sha256)
        evaluated = replace(self.evaluate, windows=len(text.held_out))
        retained = self.task.retained_sha256 if self.retained else None
        facts = replace(facts, retained_sha256=retained, held_out_sha256=self.task.held_out_sha256)
        self._export(loaded, replace(facts, scores=self.scores, evaluate=evaluated))

    def _source(self) -> ModelSource:
        spec, folder = self.task.spec, self.task.downloaded
        ask_hub = None if folder is None else lambda reference, _: downloaded(reference, folder)
        return find(spec.model, roots=self.task.model_roots, revision=spec.revision, ask_hub=ask_hub)

    def _read(self, source: ModelSource) -> Text:
        """Read and tokenize the datasets. Raises DataError if the text is too short.

        This is done before the weights are loaded, so that a bad dataset fails early. The worker expects a message at
        least every few minutes from the first `Reading` on, because a tokenizer or a chat template may never end.
        """
        self.send(Reading(records=0))
        share, found = self.task.spec.evaluate.held_out, records.read(self.folder / DATA, "the dataset")
        if share is None:
            held_out = records.read(self.folder / HELD_OUT_DATA, "the dataset to evaluate on")
            training = records.exclude(found, held_out)
        else:
            training, held_out = records.split(found, share, self.task.spec.seed)
        tokenizer = load_tokenizer(source)
        stages.require_expressible(tokenizer, self.task.spec.output.formats)
        encoded = encode(training, tokenizer, self._report_reading)
        judged = encode(held_out, tokenizer, lambda done: self._report_reading(len(training) + done))
        retained = self._read_retained(tokenizer, len(found))
        with split_described(encoded, judged) if share else nullcontext():
            with named("training text", "dataset", "prune.calibration.tokens"):
                calibration = stages.calibration_windows(encoded, tokenizer, self.prune)
            with named("training text", "dataset", "repair.sequence_tokens"):
                packed = pack(encoded, self.repair.sequence_tokens) if self.repair else None
            with named("held-out text", "evaluate.tokens", "evaluate.held_out", "evaluate.dataset"):
                windows = evaluation_windows(judged, self.evaluate.tokens, self.evaluate.windows)
        opening = opening_tokens(tokenizer) if self.repair and self.repair.retain is Retain.WRITTEN else []
        return Text(calibration, packed, windows, opening, retained)

    def _read_retained(self, tokenizer: Any, before: int) -> Packed | None:
        """Return the windows of the dataset to retain, if they are needed. `before` records were read before it."""
        if self.task.resume is not None or not self.repair or self.repair.retain is not Retain.DATASET:
            return None
        found = records.read(self.folder / RETAIN_DATA, "the dataset to retain")
        encoded = encode(found, tokenizer, lambda done: self._report_reading(before + done))
        return stages.windows_to_retain(encoded, self.repair)

    @property
    def _device(self) -> str:
        return choose_device(self.task.device)

    def _prune(self, loaded: Loaded, text: Text) -> None:
        """Evaluate the dense model, prune and reconstruct it, evaluate the pruned model, and save the state.

        Before that, the dense model writes the text that the repair retains, or reads it, and records its predictions.

        The weights are rounded as in the checkpoint before the second evaluation. With the schedule `gradual` the
        model is not pruned now, so there is no second evaluation, and the state has the dense weights. The state is
        saved before any training. So the job fails now, and not at its end, if the state cannot be written or stored,
        or if the disk has no space for the state and the checkpoint.
        """
        if self.repair:
            report = self._reporter()
            self.retained = stages.retained_text(loaded, self.repair, text.opening, text.retained, report)
        self._evaluate("dense", Stage.DENSE, loaded, text)

        def load_dense() -> Any:
            return load(loaded.source).model

        stages.prune(loaded, text.calibration, self.prune, load_dense, self._reporter())
        round_weights(loaded.model)
        if not self.prune.gradual:
            self._evaluate("pruned", Stage.PRUNED, loaded, text)
        (folder := self._state_folder).mkdir(parents=True)
        weights = sum(parameter.numel() for parameter in loaded.model.parameters())
        exported = stages.exported_bytes(loaded, self.task.spec.output.formats)
        disk_space.require_space(folder, PRUNED_BYTES * weights + exported)
        save_pruned(loaded.model, folder / PRUNED)
        if self.retained:
            save_retained(self.retained, folder / RETAINED)
        (folder / SCORES).write_text(json.dumps(self.scores))
        self.send(Saved(step=self.step))

    def _resume(self, loaded: Loaded) -> None:
        """Read the weights and the scores from before the training from a saved state.

        If incompatible software wrote the training state, training starts again from step 0. Pruning is not repeated.
        """
        load_pruned(loaded.model, self.folder / STATE / PRUNED)
        round_weights(loaded.model)
        if self.repair and self.repair.retains:
            self.retained = load_retained(self.folder / STATE / RETAINED)
        self.scores = json.loads((self.folder / STATE / SCORES).read_bytes())
        self.send(Scored(scores=self.scores))
        if self.repair and self.step and (message := outdated(self.folder / STATE, self.repair)):
            self.step = 0
            self.send(Refused(message=message))

    def _repair(self, loaded: Loaded, text: Text, training: Packed, config: RepairConfig) -> stages.RepairResult:
        """Train to the last step, then evaluate the best state of the training."""

        def load_teacher() -> Any:
            return load(loaded.source, device=self._device).model

        repair = stages.start_repair(
            loaded,
            training,
            config,
            pruned=self.prune,
            load_teacher=load_teacher,
            retained=self.retained,
            held_out=text.held_out,
            alive=self._report_training,
        )
        if self.step:
            repair.load(self.folder / STATE)
        self._progress(Stage.TRAINING, repair.step / config.steps)
        self._train(repair, config.steps)
        result = stages.finish_repair(repair, self._report_finishing)
        round_weights(loaded.model)
        self._evaluate("repaired", Stage.REPAIRED, loaded, text)
        return result

    def _train(self, repair: Repair, steps: int) -> None:
        saved, enough = time.monotonic(), self._enough
        while not repair.done and not enough:
            reports = repair.advance()
            self.step = repair.step
            self._progress(Stage.TRAINING, repair.step / steps)
            self._send_step(reports)
            stopping, enough = self.stopping(), self._enough
            due = time.monotonic() > saved + self.task.checkpoint_seconds or enough or repair.done
            if stopping or (due and self._all_stored):
                self._save(repair)
                saved = time.monotonic()
            if stopping:
                raise Cancelled

    def _send_step(self, reports: Sequence[Step | Evolved | Judged]) -> None:
        """Send the measurements of one step to the worker.

        All metrics of the step are one message. A topology update is a message with its counts per pruned layer.
        """
        metrics: dict[str, float] = {}
        for report in reports:
            values = asdict(report)
            if isinstance(report, Evolved):
                self.send(TopologyEvolved(**values))
                del values["layers"], values["undone"]
            del values["step"]
            metrics |= values
        metrics["memory_bytes"] = usage.peak_usage(self._device)
        self.send(Measured(step=self.step, values=metrics))

    @property
    def _last_step(self) -> float:
        """The step after which training must end early, or infinity.

        With the schedule `gradual` it takes at least one step, because weights become zero by what a step measures.
        """
        path, least = self.folder / ENOUGH, int(self.prune.gradual)
        return max(least, int(path.read_text())) if path.exists() else math.inf

    @property
    def _enough(self) -> bool:
        """True if training must end early and has reached the requested step."""
        return self.step >= self._last_step

    @property
    def _all_stored(self) -> bool:
        """True if the worker has stored all saved states and deleted their files.

        The pipeline saves the next state only then, so at most two states are on disk.
        """
        return not any((self.folder / RESUME).glob("*"))

    @property
    def _state_folder(self) -> Path:
        return self.folder / RESUME / str(self.step)

    def _save(self, repair: Repair) -> None:
        disk_space.require_space(self.folder, self.state_bytes)
        repair.save(self._state_folder)
        self.state_bytes = disk_space.size(self._state_folder)
        self.send(Saved(step=self.step))

    def _evaluate(self, name: str, stage: Stage, loaded: Loaded, text: Text) -> None:
        texts = {name: text.held_out}
        if self.retained:
            texts[f"{name}_retained"] = split_retained(self.retained)[1]
        for key, windows in texts.items():
            score = perplexity(loaded.model, windows, self._reporter(stage) if key == name else self._check_stop)
            if not math.isfinite(score):
                raise EvaluateError(f"the {name} model must have a finite perplexity; it has {score}. Prune it less.")
            self.scores[key] = score
        self.send(Scored(scores=self.scores))

    def _export(self, loaded: Loaded, facts: Facts) -> None:
        self._progress(Stage.EXPORTING, 0.0)
        formats = self.task.spec.output.formats
        disk_space.require_space(self.folder, stages.exported_bytes(loaded, formats))
        record = stages.publish(loaded, self.folder / RESULT, facts, self._report_export, formats)
        sparsity = record.data()["sparsity"]
        measured = {"linears": sparsity["linears"], "model": sparsity["model"], "grown_zeros": facts.grown_zeros}
        self.send(Finished(step=self.step, scores=self.scores, measured=measured))

    def _reporter(self, stage: Stage | None = None) -> Reporter:
        """Return a function that sends progress to the worker, and raises Cancelled if the run must stop.

        Without `stage`, each report belongs to the stage with the same name as its phase.
        """

        def report(event: Report) -> None:
            if isinstance(event, Progress):
                self._progress(stage or Stage(event.phase), event.done / event.total)
            if self.stopping():
                raise Cancelled

        return report

    def _check_stop(self, _: Report) -> None:
        """Report nothing. Raises Cancelled if the run must stop."""
        if self.stopping():
            raise Cancelled

    def _report_finishing(self, report: Report) -> None:
        """Report that the method finishes its weights after the last step. Raises Cancelled if the run must stop."""
        self._progress(Stage.TRAINING, 1.0)
        self._check_stop(report)

    def _report_reading(self, done: int) -> None:
        """Report at most once per second how many records are read. Raises Cancelled if the run must stop."""
        if (now := time.monotonic()) > self.reported + READING_SECONDS:
            self.reported = now
            self.send(Reading(records=done))
            if self.stopping():
                raise Cancelled

    def _report_training(self, _: Report) -> None:
        """Report progress during a held-out evaluation between two steps.

        A request to stop takes effect only after the evaluation.
        """
        assert self.repair is not None
        self._progress(Stage.TRAINING, self.step / self.repair.steps)

    def _report_export(self, event: Report) -> None:
        """Report progress of the export. A request to stop does not interrupt the export."""
        if isinstance(event, Progress):
            self._progress(Stage.EXPORTING, event.done / event.total)

    def _progress(self, stage: Stage, fraction: float) -> None:
        if stage is not self.stage:
            self.stage = stage
            usage.trim_memory()
        self.meter.last_step = self._last_step
        progress, remaining = self.meter.report(stage, fraction)
        self.send(Progressed(phase=stage.phase, progress=progress, step=self.step, remaining=remaining))


def configure_torch(threads: int) -> None:
    """Make torch deterministic and set its number of CPU threads. With 0, torch keeps its own number.

    Results are equal only with the same number of threads.
    """
    if threads:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling memory that is overwritten anyway costs time and does not change results.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
