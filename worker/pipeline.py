"""One job in the training process, from its folder to a verified checkpoint.

The bytes of the checkpoint depend on the request, the model and the data; not on how often the run was interrupted:
whatever a later step needs of an earlier one, scores included, is in the resumable state, to the last bit. Where the
worker says that it is enough, training ends after the step that is being taken, and what comes after goes on.
"""

import ctypes
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

# cuBLAS reads it when it starts; without it, its sums are not the same in every run.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from jaxtyping import Int
from torch import Tensor

from seft.checkpoint.export import export, round_weights
from seft.checkpoint.facts import Base, Facts, Record
from seft.checkpoint.pack import load_pruned, save_pruned
from seft.checkpoint.verify import verify
from seft.config import RepairConfig
from seft.data import records
from seft.data.packing import Packed, concatenate, pack
from seft.data.text import encode, evaluation_windows, windows
from seft.data.tokens import bos_tokens
from seft.errors import Cancelled, EvaluateError
from seft.evaluate import mean_loss, perplexity
from seft.models.load import Loaded, load, load_tokenizer
from seft.models.source import ModelSource, downloaded, find
from seft.prune.loop import prune_model
from seft.prune.methods import text_users
from seft.prune.reconstruct import reconstruct
from seft.repair import Repair
from seft.repair.state import outdated
from seft.report import Evolved, Judged, Progress, Report, Reporter, Step
from seft.verbs import Place
from worker import disk_space, usage
from worker.meter import Stage, progress, stages
from worker.protocol import (
    DATA,
    ENOUGH,
    RESULT,
    RESUME,
    STATE,
    Finished,
    Measured,
    Message,
    Progressed,
    Refused,
    Saved,
    Scored,
    Task,
    TopologyEvolved,
)
from worker.translate import evaluate_config, prune_config, repair_config

PRUNED, SCORES = "pruned.safetensors", "scores.json"
PRUNED_BYTES, EXPORTED_BYTES = 4, 2
"""Of one weight on the disk, at most: in a state, and in the checkpoint."""


@dataclass(frozen=True, slots=True)
class Text:
    """The dataset, tokenised. Calibration is drawn from what is trained on; what is judged by is neither's."""

    calibration: Int[Tensor, "windows tokens"]
    training: Packed | None
    held_out: Packed


class Pipeline:
    """A run. `say` sends a message to the worker; `stopping` is asked often, and once true the run saves and ends."""

    def __init__(self, folder: Path, task: Task, say: Callable[[Message], None], stopping: Callable[[], bool]) -> None:
        self.folder, self.task, self.say, self.stopping = folder, task, say, stopping
        self.prune, self.repair = prune_config(task.spec), repair_config(task.spec, task.micro_batch)
        self.evaluate = evaluate_config(task.spec)
        self.stages = stages(reconstructs=self.prune.reconstruct_epochs > 0, repairs=self.repair is not None)
        self.scores: dict[str, float] = {}
        self.step = self.kept = task.resume or 0
        self.stage: Stage | None = None
        self.state_bytes = 0
        """Of the newest state of training."""

    def run(self) -> None:
        """Through all stages. Cancelled when it was asked to stop; SeftError where the job cannot be done."""
        settle_torch(self.task.threads)
        self._progress(Stage.LOADING, 0.0)
        source = self._source()
        text = self._read(source)
        loaded = load(source, device=self._device)
        self._progress(Stage.LOADING, 1.0)
        if self.task.resume is None:
            self._prune(loaded, text)
        else:
            self._take_up(loaded)
        if self._enough and self.step == 0:
            self.repair = None
        grown = self._repair(loaded, text, text.training, self.repair) if text.training and self.repair else 0
        self._export(loaded, text, grown)

    def _source(self) -> ModelSource:
        spec, private = self.task.spec, self.task.private
        ask_hub = None if private is None else lambda reference, _: downloaded(reference, private)
        return find(spec.model, roots=self.task.model_roots, revision=spec.revision, ask_hub=ask_hub)

    def _read(self, source: ModelSource) -> Text:
        """Text that is too short is refused here, before the weights are loaded."""
        spec, tokenizer = self.task.spec, load_tokenizer(source)
        training, held_out = records.split(records.read(self.folder / DATA), spec.evaluate.held_out, spec.seed)
        encoded = encode(training, tokenizer)
        return Text(
            calibration=self._calibration(concatenate(encoded), bos_tokens(tokenizer)),
            training=pack(encoded, self.repair.sequence_tokens) if self.repair else None,
            held_out=evaluation_windows(encode(held_out, tokenizer), self.evaluate.tokens, self.evaluate.windows),
        )

    def _calibration(self, tokens: Int[Tensor, "tokens"], head: Sequence[int]) -> Int[Tensor, "windows tokens"]:
        if not self._needs_text:
            return torch.zeros(0, self.prune.tokens, dtype=torch.int64)
        return windows(tokens, self.prune.tokens, self.prune.samples, self.prune.order, self.prune.seed, head=head)

    @property
    def _device(self) -> str:
        return Place.of(self.task.device, "float32").device

    @property
    def _needs_text(self) -> bool:
        return bool(text_users(self.prune))

    def _prune(self, loaded: Loaded, text: Text) -> None:
        """Judge, prune, reconstruct, round as the checkpoint will be, judge again, save: none of this is done twice.

        The save comes before any training: where it cannot be written or stored, or the disk has no room for it and
        for the checkpoint, the job learns it now, not at its end.
        """
        self._judge("dense", Stage.DENSE, loaded, text)
        prune_model(loaded.model, text.calibration, self.prune, self._reporter(Stage.PRUNING))
        if self.prune.reconstruct_epochs:
            dense = load(loaded.source).model
            reconstruct(loaded.model, dense, text.calibration, self.prune, self._reporter(Stage.RECONSTRUCTING))
        round_weights(loaded.model)
        self._judge("pruned", Stage.PRUNED, loaded, text)
        (folder := self._state_folder).mkdir(parents=True)
        disk_space.require_space(folder, PRUNED_BYTES * _weights(loaded) + EXPORTED_BYTES * _weights(loaded))
        save_pruned(loaded.model, folder / PRUNED)
        (folder / SCORES).write_text(json.dumps(self.scores))
        self.say(Saved(step=self.step))

    def _take_up(self, loaded: Loaded) -> None:
        """The pruned weights and the scores out of a state.

        A state of training that other software left costs its steps and not the job: training begins anew.
        """
        load_pruned(loaded.model, self.folder / STATE / PRUNED)
        round_weights(loaded.model)
        self.scores = json.loads((self.folder / STATE / SCORES).read_bytes())
        self.say(Scored(scores=self.scores))
        if self.repair and self.step and (flaw := outdated(self.folder / STATE, self.repair)):
            self.step = self.kept = 0
            self.say(Refused(message=flaw))

    def _repair(self, loaded: Loaded, text: Text, training: Packed, config: RepairConfig) -> int:
        """Train to the end and judge the best state; returns how many zeros have grown."""
        teacher = load(loaded.source, device=self._device).model if config.distills else None
        judge = partial(mean_loss, loaded.model, text.held_out, self._alive) if config.evaluate_interval else None
        work = Repair(loaded.model, training, config, pruned=self.prune, teacher=teacher, judge=judge)
        if self.step:
            work.load(self.folder / STATE)
        self._progress(Stage.TRAINING, work.step / config.steps)
        self._train(work, config.steps)
        work.finish(self._live)
        self.kept = work.kept_step
        grown = work.grown_zeros
        round_weights(loaded.model)
        self._judge("repaired", Stage.REPAIRED, loaded, text)
        return grown

    def _train(self, work: Repair, steps: int) -> None:
        saved, enough = time.monotonic(), self._enough
        while not work.done and not enough:
            reports = work.advance()
            self.step = work.step
            self._progress(Stage.TRAINING, work.step / steps)
            self._tell(reports)
            stopping, enough = self.stopping(), self._enough
            due = time.monotonic() > saved + self.task.checkpoint_seconds or enough or work.done
            if stopping or (due and self._all_taken):
                self._save(work)
                saved = time.monotonic()
            if stopping:
                raise Cancelled

    def _tell(self, reports: Sequence[Step | Evolved | Judged]) -> None:
        """All that one step reports in one row, and its event with each layer's part."""
        values: dict[str, float] = {}
        for report in reports:
            found = asdict(report)
            if isinstance(report, Evolved):
                self.say(TopologyEvolved(**found))
                del found["layers"]
            del found["step"]
            values |= found
        values["memory_bytes"] = usage.peak_usage(self._device)
        self.say(Measured(step=self.step, values=values))

    @property
    def _enough(self) -> bool:
        """It was asked to stop, and has the steps again that it had then."""
        told = self.folder / ENOUGH
        return told.exists() and self.step >= int(told.read_text())

    @property
    def _all_taken(self) -> bool:
        """Whether the worker has stored and removed all states; so never more than two of them fill the disk."""
        return not any((self.folder / RESUME).glob("*"))

    @property
    def _state_folder(self) -> Path:
        return self.folder / RESUME / str(self.step)

    def _save(self, work: Repair) -> None:
        disk_space.require_space(self.folder, self.state_bytes)
        work.save(self._state_folder)
        self.state_bytes = disk_space.size(self._state_folder)
        self.say(Saved(step=self.step))

    def _judge(self, name: str, stage: Stage, loaded: Loaded, text: Text) -> None:
        score = perplexity(loaded.model, text.held_out, self._reporter(stage))
        if not math.isfinite(score):
            raise EvaluateError(f"the {name} model must have a finite perplexity; it has {score}. Prune it less.")
        self.scores[name] = score
        self.say(Scored(scores=self.scores))

    def _export(self, loaded: Loaded, text: Text, grown: int) -> None:
        self._progress(Stage.EXPORTING, 0.0)
        folder, data = self.folder / RESULT, self.task.dataset_sha256
        disk_space.require_space(self.folder, EXPORTED_BYTES * _weights(loaded))
        facts = Facts(
            base=Base.of(loaded.source),
            prune=self.prune,
            repair=self.repair,
            stopped_at=self.step if self.repair and self.step < self.repair.steps else None,
            kept_at=self.kept if self.repair and self.kept < self.step else None,
            teacher=Base.of(loaded.source) if self.repair and self.repair.distills else None,
            scores=self.scores,
            evaluate=replace(self.evaluate, windows=len(text.held_out)),
            grown_zeros=grown,
            calibration_sha256=data if self._needs_text else None,
            dataset_sha256=data if self.repair else None,
        )
        export(loaded, folder, facts)
        self._progress(Stage.EXPORTING, 0.5)
        verify(folder)
        self._progress(Stage.EXPORTING, 1.0)
        counted = Record.read(folder).data()["sparsity"]
        measured = {"linears": counted["linears"], "model": counted["model"], "grown_zeros": grown}
        self.say(Finished(step=self.step, scores=self.scores, measured=measured))

    def _reporter(self, stage: Stage) -> Reporter:
        def report(done: Report) -> None:
            if isinstance(done, Progress):
                self._progress(stage, done.done / done.total)
            if self.stopping():
                raise Cancelled

        return report

    def _live(self, _: Report) -> None:
        """Between training and judging, which some methods fill with work."""
        self._progress(Stage.TRAINING, 1.0)
        if self.stopping():
            raise Cancelled

    def _alive(self, _: Report) -> None:
        """Between two steps, one of which is judged. A wish to stop waits for the end of it, as for that of a step."""
        assert self.repair is not None
        self._progress(Stage.TRAINING, self.step / self.repair.steps)

    def _progress(self, stage: Stage, share: float) -> None:
        if stage is not self.stage:
            self.stage = stage
            give_back()
        self.say(Progressed(phase=stage.phase, progress=progress(self.stages, stage, share), step=self.step))


def give_back() -> None:
    """Have the C library give freed memory back: what a stage held must not stand beside what the next one holds."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def settle_torch(threads: int) -> None:
    """Same input, same bits; `threads` is part of the input, 0 leaves their number to torch."""
    if threads:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling memory that is about to be written costs time and decides nothing.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _weights(loaded: Loaded) -> int:
    return sum(parameter.numel() for parameter in loaded.model.parameters())
