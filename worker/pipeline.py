"""Run one job in the training process, from the files in the job folder to a verified checkpoint.

With the same software and machine, the bytes of the checkpoint depend only on the request, the model and the data.
Interruptions do not change them. So a saved state stores exactly everything that a later step needs from an earlier
one, scores included. If the worker ends training early, the current step is finished and the remaining stages run.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from core.estimate.footprint import retained_bytes
from core.estimate.speed import DENSE_BYTES
from core.infra import folders
from core.stages import Stage
from seft import stages
from seft.checkpoint.export import round_weights
from seft.checkpoint.facts import Conditions, Facts, versions
from seft.checkpoint.formats import Store
from seft.checkpoint.provenance import describe_model, this_machine
from seft.checkpoint.pruned_state import load_pruned, save_pruned
from seft.config import RepairConfig
from seft.data.packing import Packed
from seft.devices import configure_torch, trim_memory
from seft.errors import Cancelled, EvaluateError
from seft.evaluate import perplexity
from seft.models.load import Loaded, load, load_tokenizer
from seft.models.source import ModelSource
from seft.repair import Repair, RepairResult
from seft.repair.shards import Shards
from seft.repair.state import outdated
from seft.report import Evaluated, Evolved, Progress, Report, Reporter, Step
from seft.retain import load_retained, save_retained, split_retained
from worker import disk_space
from worker.conditions import read_conditions, write_conditions
from worker.launch import device_of, dtype_of, find_model, peak_memory, threads_of
from worker.progress import ProgressEstimator
from worker.protocol import (
    END_TRAINING,
    RESULT,
    RESUME,
    STATE,
    Finished,
    Measured,
    Message,
    Progressed,
    Reading,
    Refused,
    Saved,
    Scored,
    Storing,
    Task,
    TopologyEvolved,
)
from worker.replica import Next, Start, in_parallel, send_to_others, share_weights
from worker.texts import JobTexts, read_texts

PRUNED, SCORES, RETAINED = "pruned.safetensors", "scores.json", "retained.safetensors"
PRUNED_BYTES = 4
"""Maximum bytes on disk per weight in a saved state."""

READING_SECONDS = 1.0
"""Seconds between two messages about the records that are read."""


class Pipeline:
    """Runs one job.

    `send` sends a message to the worker. `stopping` is called often. When it returns True, the run ends. During
    training, it saves its state first. Files of formats are in `store`, or in the folder of the result if it is None.
    """

    def __init__(
        self,
        folder: Path,
        task: Task,
        send: Callable[[Message], None],
        stopping: Callable[[], bool],
        store: Store | None = None,
    ) -> None:
        self.folder, self.task, self.send, self.stopping, self.store = folder, task, send, stopping, store
        self.prune, self.repair = task.spec.prune_config(), task.spec.repair_config(task.micro_batch)
        self.evaluate = task.spec.evaluate_config()
        self._device, self._dtype = device_of(task), dtype_of(task)
        self._shards: Shards | None = None
        self.retained: Packed | None = None
        self.estimator = ProgressEstimator(task.spec)
        self.estimator.least = self.estimator.shares.reached(task.resume)
        self.scores: dict[str, float] = {}
        self.conditions: list[Conditions] = []
        """Conditions of the attempts so far, without repetitions. The first pruned the model."""
        self.step = task.resume or 0
        self.stage: Stage | None = None
        self.reported = 0.0
        """Time of the last report about the records that are read."""
        self.state_bytes = 0
        """Size of the newest training state in bytes."""

    def run(self) -> None:
        """Run all stages. Raises Cancelled if `stopping` returns True, and SeftError if the job cannot be done."""
        configure_torch(threads_of(self.task))
        self._progress(Stage.LOADING, 0.0)
        source = find_model(self.task)
        text = self._read(source)
        self._progress(Stage.LOADING, 0.5)
        loaded = self._load(source)
        base, machine = describe_model(loaded.source, self._report_hashing), this_machine(self._device, self._dtype)
        now = Conditions(machine, self.repair.micro_batch if self.repair else None, versions())
        self.estimator.expect(self.task.speed, source)
        self._progress(Stage.LOADING, 1.0)
        if self.task.resume is None:
            self.conditions = [now]
            self._prune(loaded, text)
        else:
            self._resume(loaded)
        pruned_on = self.conditions[0].machine if self.conditions else None
        if self.conditions[-1:] != [now]:
            self.conditions.append(now)
        if self._ends_early and self.step == 0:
            # No weight depends on the text to retain, so the record has neither this text nor scores on it.
            self.repair = self.retained = None
            self.scores = {name: score for name, score in self.scores.items() if not name.endswith("_retained")}
        sha256, reads = self.task.dataset_sha256, self.prune.reads_calibration
        facts = stages.pruned_facts(loaded, self.prune, sha256 if reads else None, base=base(), machine=pruned_on)
        stages.require_zeros(self.prune, facts)
        self.prune = facts.prune
        if text.training and self.repair:
            result = self._repair(loaded, text, text.training, self.repair)
            facts = stages.repaired_facts(
                facts, self.repair, result, teacher=facts.base, dataset_sha256=sha256, machine=machine
            )
        elif not self._shards:
            send_to_others(None, None)
        facts = text.add_to(facts, self.task, self.retained)
        evaluated = replace(self.evaluate, windows=len(text.held_out))
        attempts = tuple(self.conditions) if len(self.conditions) > 1 else ()
        if self._shards:
            loaded = replace(loaded, model=self._shards.collect())
            send_to_others(None, self._shards)
        self._export(loaded, replace(facts, scores=self.scores, evaluate=evaluated, attempts=attempts))

    def _load(self, source: ModelSource) -> Loaded:
        """Load the model to the device. If it is split, load it to the host and distribute it over all processes."""
        if not self.task.spec.sharded:
            return load(source, device=self._device, dtype=self._dtype)
        loaded = load(source, dtype=self._dtype)
        self._shards = Shards(loaded.model, self._device)
        return loaded

    def _read(self, source: ModelSource) -> JobTexts:
        """Read and tokenize the datasets. Raises DataError if the text is too short.

        This is done before the weights are loaded, so that a bad dataset fails early. The worker expects a message at
        least every few minutes from the first `Reading` on, because a tokenizer or a chat template may never end.
        """
        self.send(Reading(records=0))
        tokenizer = load_tokenizer(source)
        stages.require_expressible(tokenizer, self.task.spec.output.formats)
        return read_texts(
            self.folder,
            self.task,
            tokenizer,
            prune=self.prune,
            repair=self.repair,
            evaluate=self.evaluate,
            heartbeat=self._report_reading,
        )

    def _prune(self, loaded: Loaded, text: JobTexts) -> None:
        """Evaluate the dense model, prune and reconstruct it, evaluate the pruned model, and save the state.

        First, the dense model writes or reads the text that the repair retains, and its predictions are recorded.

        The weights are rounded as in the checkpoint before the second evaluation. With the schedule `gradual` the
        model is not pruned now, so there is no second evaluation, and the state has the dense weights. The state is
        saved before any training. So the job stops now, and not at its end, if the state cannot be written or stored,
        or if the disk has no space for the state and the checkpoint.
        """
        if self.repair:
            report = self._reporter()
            self.retained = stages.retained_text(loaded, self.repair, text.start_tokens, text.retained, report)
        self._evaluate("dense", Stage.DENSE, loaded, text)

        def load_dense() -> Any:
            return load(loaded.source, dtype=self._dtype).model

        stages.prune(loaded, text.calibration, self.prune, load_dense, self._reporter())
        round_weights(loaded.model)
        if not self.prune.gradual:
            self._evaluate("pruned", Stage.PRUNED, loaded, text)
        (folder := self._state_folder).mkdir(parents=True)
        weights = (PRUNED_BYTES + DENSE_BYTES) * _count_weights(loaded)
        disk_space.require_space(folder, weights + retained_bytes(self.task.spec))
        save_pruned(loaded.model, folder / PRUNED)
        if self.retained:
            save_retained(self.retained, folder / RETAINED)
        (folder / SCORES).write_text(json.dumps(self.scores))
        write_conditions(folder, self.conditions)
        self.send(Saved(step=self.step))

    def _resume(self, loaded: Loaded) -> None:
        """Read the pruned weights, the retained text, the scores and the conditions from a saved state.

        If incompatible software wrote the training state, training starts again from step 0. Pruning is not repeated.
        At step 0 the conditions get the current micro-batch, because pruning does not depend on it.
        """
        load_pruned(loaded.model, self.folder / STATE / PRUNED)
        round_weights(loaded.model)
        if self.repair and self.repair.retains:
            self.retained = load_retained(self.folder / STATE / RETAINED)
        self.scores = json.loads((self.folder / STATE / SCORES).read_bytes())
        self.conditions = read_conditions(self.folder / STATE)
        self.send(Scored(scores=self.scores))
        if self.repair and self.step and (message := outdated(self.folder / STATE, self.repair)):
            self.step = 0
            self.estimator.least = self.estimator.shares.reached(0)
            self.send(Refused(message=message))
        if self.step == 0:
            micro_batch = self.repair.micro_batch if self.repair else None
            self.conditions = [replace(first, micro_batch=micro_batch) for first in self.conditions[:1]]

    def _repair(self, loaded: Loaded, text: JobTexts, training: Packed, config: RepairConfig) -> RepairResult:
        """Train to the last step, then evaluate the best state of the training."""
        start = Start(training, text.held_out, self.retained, self.prune, config, self.step)
        self._progress(Stage.TRAINING, self.step / config.steps)
        send_to_others(start, self._shards)
        share_weights(loaded.model, self._shards)
        with in_parallel(self._shards):
            repair = start.open(loaded, self.folder, self._report_training)
        self._progress(Stage.TRAINING, self.step / config.steps)  # the pace of the steps counts from here
        self._train(repair, config.steps)
        result = repair.finish(self._report_finishing)
        del repair  # frees the moments of the optimizer before the evaluation
        round_weights(loaded.model)
        self._evaluate("repaired", Stage.REPAIRED, loaded, text)
        return result

    def _train(self, repair: Repair, steps: int) -> None:
        saved = time.monotonic()
        # A stop before the first step may come after `run` has decided to train. Then one step is taken.
        now = Next(stop=False, end=self.step > 0 and self._ends_early)
        send_to_others(now, self._shards)
        while not repair.done and not now.end:
            with in_parallel(self._shards):
                reports = repair.advance()
            shutil.rmtree(self.folder / STATE, ignore_errors=True)  # all processes read it before this step
            self.step = repair.step
            self._progress(Stage.TRAINING, repair.step / steps)
            self._send_step(reports)
            now = Next(self.stopping(), self._ends_early)
            due = time.monotonic() > saved + self.task.checkpoint_seconds or now.end or repair.done
            if now.stop or (due and self._all_stored):
                self._save(repair)
                saved = time.monotonic()
            send_to_others(now, self._shards)
            if now.stop:
                raise Cancelled

    def _send_step(self, reports: Sequence[Step | Evolved | Evaluated]) -> None:
        """Send the measurements of one step to the worker.

        All metrics of the step are one message. A topology event is a message of its own.
        """
        metrics: dict[str, float] = {}
        for report in reports:
            values = asdict(report)
            if isinstance(report, Evolved):
                self.send(TopologyEvolved(event=report))
                del values["layers"], values["undone"]
            del values["step"]
            metrics |= values
        metrics["memory_bytes"] = peak_memory(self._device)
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}  # JSON has no others
        self.send(Measured(step=self.step, values=finite))

    @property
    def _last_step(self) -> float:
        """The step after which training must end early, or infinity.

        With the schedule `gradual`, training takes at least one step, because a step measures what becomes zero.
        """
        path, least = self.folder / END_TRAINING, int(self.prune.gradual)
        return max(least, int(path.read_text())) if path.exists() else math.inf

    @property
    def _ends_early(self) -> bool:
        """True if training must end early and has reached the requested step."""
        return self.step >= self._last_step

    @property
    def _all_stored(self) -> bool:
        """True if the worker has stored all saved states and deleted their files.

        Only a request to stop saves a state before that. So at most two states are on disk.
        """
        return not any((self.folder / RESUME).glob("*"))

    @property
    def _state_folder(self) -> Path:
        return self.folder / RESUME / str(self.step)

    def _save(self, repair: Repair) -> None:
        disk_space.require_space(self.folder, self.state_bytes)
        repair.save(self._state_folder)
        write_conditions(self._state_folder, self.conditions)
        self.state_bytes = folders.size(self._state_folder)
        self.send(Saved(step=self.step))

    def _evaluate(self, name: str, stage: Stage, loaded: Loaded, text: JobTexts) -> None:
        self._progress(stage, 0.0)
        texts = {name: text.held_out}
        if self.retained:
            texts[f"{name}_retained"] = split_retained(self.retained)[1]
        for key, windows in texts.items():
            score = perplexity(loaded.model, windows, self._reporter(stage) if key == name else self._check_stop)
            if not math.isfinite(score):
                way_out = "Prune it less, or choose a different model."
                raise EvaluateError(f"the {name} model must have a finite perplexity; it has {score}. {way_out}")
            self.scores[key] = score
        self.send(Scored(scores=self.scores))

    def _export(self, loaded: Loaded, facts: Facts) -> None:
        self._progress(Stage.EXPORTING, 0.0)
        formats = self.task.spec.output.formats
        disk_space.require_space(self.folder, DENSE_BYTES * _count_weights(loaded))
        if self.store and any(each.file for each in formats):
            self.send(Storing())
        record = stages.publish(loaded, self.folder / RESULT, facts, self._report_export, formats, store=self.store)
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

    def _report_hashing(self) -> None:
        """Report that the run waits for the hashes of the model. Raises Cancelled if the run must stop."""
        self._progress(self.stage or Stage.LOADING, 1.0)
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
            trim_memory()
        self.estimator.last_step = self._last_step
        progress, remaining = self.estimator.report(stage, fraction)
        self.send(Progressed(phase=stage.phase, progress=progress, step=self.step, remaining=remaining))


def _count_weights(loaded: Loaded) -> int:
    return sum(parameter.numel() for parameter in loaded.model.parameters())
