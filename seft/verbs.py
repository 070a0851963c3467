"""Operations on whole models, one function per command: prune, repair, compress, evaluate, export.

They read the files, check the arguments before any weight is loaded, and run `seft.stages`. They print nothing; the
command line in `seft.cli` does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from seft import harness, stages
from seft.checkpoint.export import round_weights
from seft.checkpoint.facts import Base, Facts, Machine, Record, TextInfo
from seft.checkpoint.folder import find_folder, recorded_facts, tensors
from seft.checkpoint.formats import require_place, write_format
from seft.checkpoint.outputs import new_file, new_folder, require_empty
from seft.checkpoint.provenance import describe_model, this_machine
from seft.checkpoint.verify import verify_file
from seft.config import EvaluateConfig, OutputFormat, PruneConfig, RepairConfig, require_repair_of
from seft.data import records
from seft.data.packing import Packed
from seft.data.text import encode, evaluation_windows, named
from seft.devices import choose_device, choose_dtype
from seft.distill import require_same_shape, require_teacher
from seft.errors import ConfigError, EvaluateError
from seft.evaluate import perplexity
from seft.fit import fitting, require_dense_model, require_same_sizes
from seft.models.dimensions import context_length
from seft.models.load import Loaded, load
from seft.models.source import ModelSource, find
from seft.multiple_choice import Accuracy, accuracy, read_questions
from seft.prune.detect_zeros import MIN_SPARSITY
from seft.repair.best import require_held_out
from seft.report import Phase, Progress, Reporter, silent
from seft.texts import (
    PackedTexts,
    TextFile,
    Texts,
    describe_records,
    describe_retained,
    read_calibration,
    require_retain_data,
)


@dataclass(frozen=True, slots=True)
class Place:
    """Device on which a model runs, and dtype of its weights there."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, device: str, dtype: str) -> "Place":
        """Return the place for the names of a device and a dtype. The device `auto` is CUDA if it is available.

        The dtype `auto` is bfloat16 if the device has instructions for it, else float32.
        """
        chosen = choose_device(device)
        return cls(chosen, choose_dtype(dtype, chosen))

    @property
    def machine(self) -> Machine:
        """The description of this place in the facts of a checkpoint."""
        return this_machine(self.device, self.dtype)


HOST = Place()


@dataclass(frozen=True, slots=True)
class Score:
    """Perplexity, the number of windows on which it was measured, and the tokens per window."""

    perplexity: float
    windows: int
    tokens: int


def prune(
    reference: str,
    config: PruneConfig,
    out: Path,
    *,
    calibration: Path | None,
    revision: str | None = None,
    place: Place = HOST,
    report: Reporter = silent,
) -> Record:
    """Prune a model, write it to the folder `out` and verify the folder. Only one block at a time is on the device.

    Raises ConfigError if the sparsity is to rise during training, or if it is 0 and the model is dense.
    """
    require_empty(out)
    if config.gradual:
        way_out = "Use seft compress, which prunes the model while it trains it."
        raise ConfigError("schedule", "must be one_shot if the model is only pruned", str(config.schedule), way_out)
    source = fitting(find(reference, revision=revision), config)
    text = read_calibration(config, calibration)
    loaded = _load(source, replace(place, device="cpu"), report)
    read = _Calibration.of(text, loaded, config)
    facts = _prune(loaded, config, read, describe_model(loaded.source), place=place, report=report)
    return _publish(loaded, out, facts, report)


def repair(
    folder: Path,
    config: RepairConfig,
    out: Path,
    *,
    data: Path,
    teacher: str | None = None,
    held_out: Path | None = None,
    retain_data: Path | None = None,
    place: Place = HOST,
    report: Reporter = silent,
) -> Record:
    """Repair the pruned model in a folder, write the result to `out` and verify it.

    If another tool pruned the model, its zeros are counted. Raises ConfigError if it has none, or if the folder has a
    `sparsity.json` that does not describe its weights.

    The number of nonzeros does not increase, and the N:M pattern is kept. `teacher` is a reference to the dense model;
    it is required if `config` distills or retains. `held_out` is a text in a format of `data`, read completely; it is
    required if `config` evaluates. `retain_data` is the text to retain, if `config` retains a dataset.
    """
    require_empty(out)
    if config.retains and teacher is None:
        way_out = "Give the original model, from before pruning, or set retain to none."
        raise ConfigError("teacher", "must be given if text is retained", None, way_out)
    if not config.retains:
        require_teacher(config, teacher)
    require_held_out(config, held_out)
    require_retain_data(config, retain_data)
    source, teacher_source = fitting(find_folder(folder), config), find(teacher) if teacher else None
    if teacher_source:
        require_same_sizes(source, teacher_source)
    known = recorded_facts(folder)
    files = Texts.read(data, held_out, retain_data)
    loaded, retained = _load(source, place, report), None
    texts = files.pack(loaded.tokenizer, config.sequence_tokens)
    dense_base = describe_model(teacher_source) if teacher_source else None
    facts = known or _found_facts(loaded, config, folder, place, report)
    round_weights(loaded.model)
    if config.retains and teacher_source:
        dense = _load(teacher_source, place, report)
        require_same_shape(loaded.model, dense.model)
        retained = stages.retained_on(place.device, dense, config, files.to_retain, report)
        del dense
    facts = _repair(loaded, facts, config, texts, retained, teacher=teacher_source, place=place, report=report)
    return _publish(loaded, out, replace(facts, teacher=dense_base and dense_base()), report)


def compress(
    reference: str,
    pruning: PruneConfig,
    config: RepairConfig,
    out: Path,
    *,
    data: Path,
    held_out: Path | None = None,
    retain_data: Path | None = None,
    revision: str | None = None,
    place: Place = HOST,
    report: Reporter = silent,
) -> Record:
    """Prune a dense model and repair it with the same text, write the result to `out` and verify it.

    This gives the same weights as `prune` and then `repair`, if `data` has no record of `held_out`. With the schedule
    `gradual`, the model is pruned while it trains. If `config` distills, the dense model is the teacher.
    """
    require_empty(out)
    require_repair_of(pruning, config)
    require_dense_model(pruning, config)
    require_held_out(config, held_out)
    require_retain_data(config, retain_data)
    source = fitting(find(reference, revision=revision), pruning, config)
    files = Texts.read(data, held_out, retain_data)
    loaded = _load(source, replace(place, device="cpu"), report)
    base = describe_model(loaded.source)
    texts = files.pack(loaded.tokenizer, config.sequence_tokens)
    calibration = _Calibration.of(files.training if pruning.reads_calibration else None, loaded, pruning)
    retained = stages.retained_on(place.device, loaded, config, files.to_retain, report)
    facts = _prune(loaded, pruning, calibration, base, place=place, report=report)
    round_weights(loaded.model)
    loaded.model.to(place.device)
    teacher = source if config.distills or config.retains else None
    facts = _repair(loaded, facts, config, texts, retained, teacher=teacher, place=place, report=report)
    return _publish(loaded, out, facts, report)


def evaluate(
    reference: str,
    config: EvaluateConfig,
    *,
    data: Path,
    revision: str | None = None,
    place: Place = HOST,
    report: Reporter = silent,
) -> Score:
    """Return the perplexity of a model over the first windows of a text, or over all if there are too few.

    Raises EvaluateError if the perplexity is not finite.
    """
    source = fitting(find(reference, revision=revision), config)
    texts = records.read(data)
    loaded = _load(source, place, report)
    windows = evaluation_windows(encode(texts, loaded.tokenizer), config.tokens, config.windows)
    score = perplexity(loaded.model, windows, report)
    _require_finite("perplexity", score)
    return Score(score, len(windows), config.tokens)


def evaluate_choices(
    reference: str, *, choices: Path, revision: str | None = None, place: Place = HOST, report: Reporter = silent
) -> Accuracy:
    """Return the accuracy of a model on a file of multiple-choice questions."""
    source = find(reference, revision=revision)
    questions = read_questions(choices)
    loaded = _load(source, place, report)
    return accuracy(loaded.model, loaded.tokenizer, questions, report, context=context_length(source))


def run_task(
    reference: str,
    *,
    task: str,
    folder: Path | None,
    revision: str | None = None,
    place: Place = HOST,
    report: Reporter = silent,
) -> dict[str, float]:
    """Return the metrics of a task of lm-evaluation-harness, or of a task that a YAML file in `folder` defines.

    Raises EvaluateError if a metric is not finite.
    """
    tasks = harness.find_task(task, folder)
    loaded = _load(find(reference, revision=revision), place, report)
    metrics = harness.run_task(loaded.model, loaded.tokenizer, task, tasks)
    for name, score in metrics.items():
        _require_finite(f"{name} of {task}", score, f" The metrics are {metrics}.")
    return metrics


def export(folder: Path, format_: OutputFormat, out: Path, *, report: Reporter = silent) -> int:
    """Write the model in a dense folder as the new file `out` and verify the file. Returns its size in bytes.

    The folder is one that `prune`, `repair` or `compress` wrote, or another one in bfloat16. Raises ConfigError if the
    format cannot express the model, and SourceError if a file with weights is damaged. The file gets its name when it
    is verified.
    """
    find_folder(folder)
    for _ in tensors(folder):  # raises SourceError if a file is damaged
        pass
    require_place(folder, format_, out)
    with new_file(out) as unfinished:
        report(Progress(Phase.EXPORTING, 0, 2))
        write_format(folder, format_, unfinished)
        report(Progress(Phase.EXPORTING, 1, 2))
        verify_file(folder, unfinished, format_)
    report(Progress(Phase.EXPORTING, 2, 2))
    return out.stat().st_size


def _require_finite(name: str, score: float, more: str = "") -> None:
    if not math.isfinite(score):
        way_out = "Prune the model less, or use another model or text."
        raise EvaluateError(f"{name} must be finite; it is {score}.{more} {way_out}")


def _found_facts(loaded: Loaded, config: RepairConfig, folder: Path, place: Place, report: Reporter) -> Facts:
    """Return the facts of a model that another tool pruned. Raises ConfigError if the model is dense."""
    base, kept = describe_model(loaded.source), PruneConfig(0.0, seed=config.seed)
    facts = stages.pruned_facts(loaded, kept, None, report, base=base(), machine=place.machine)
    if not facts.zeros_found:
        way_out = "Use seft prune before, or seft compress, which does both."
        rule = f"must have at least {MIN_SPARSITY:.0%} zeros in its linear layers"
        raise ConfigError("folder", rule, str(folder), way_out)
    return facts


@dataclass(frozen=True, slots=True)
class _Calibration:
    """The windows that pruning reads, and the description and SHA-256 of their text, or None if there is none."""

    windows: Int[Tensor, "windows tokens"]
    described: TextInfo | None = None
    sha256: str | None = None

    @classmethod
    def of(cls, text: TextFile | None, loaded: Loaded, config: PruneConfig) -> "_Calibration":
        """Return the windows of a text. Raises DataError if it is too short."""
        encoded = encode(text.records, loaded.tokenizer) if text else []
        with named("calibration text"):
            windows = stages.calibration_windows(encoded, loaded.tokenizer, config)
        return cls(windows, describe_records(text.name, encoded), text.sha256) if text else cls(windows)


def _prune(
    loaded: Loaded,
    config: PruneConfig,
    calibration: _Calibration,
    base: Callable[[], Base],
    *,
    place: Place,
    report: Reporter,
) -> Facts:
    """Prune a model that is on the host, one block at a time on the device. Returns its facts."""
    if len(calibration.windows):
        config = replace(config, samples=len(calibration.windows))

    def load_dense() -> Any:
        return _load(loaded.source, replace(place, device="cpu"), report).model

    stages.prune(loaded, calibration.windows, config, load_dense, report, device=place.device)
    facts = stages.pruned_facts(loaded, config, calibration.sha256, report, base=base(), machine=place.machine)
    stages.require_zeros(config, facts)
    return replace(facts, texts={"calibration": calibration.described}) if calibration.described else facts


def _repair(
    loaded: Loaded,
    facts: Facts,
    config: RepairConfig,
    texts: PackedTexts,
    retained: Packed | None,
    *,
    teacher: ModelSource | None,
    place: Place,
    report: Reporter,
) -> Facts:
    """Repair a loaded model in place and move it to the host. Returns its facts."""

    def load_teacher() -> Any:
        assert teacher is not None
        return _load(teacher, place, report).model

    work = stages.start_repair(
        loaded,
        texts.training,
        config,
        pruned=facts.prune,
        load_teacher=load_teacher,
        retained=retained,
        held_out=texts.held_out,
    )
    work.run(report)
    result = work.finish(report)
    # Export needs float32 weights. With teacher and master weights on the device, its memory may not be enough.
    del work
    loaded.model.to("cpu")
    files, described = texts.files, dict(texts.described)
    if retained is not None:
        described["retained"] = describe_retained(files.retained.name if files.retained else None, retained)
    sha256, machine = files.training.sha256, place.machine
    facts = stages.repaired_facts(facts, config, result, teacher=facts.base, dataset_sha256=sha256, machine=machine)
    return replace(
        facts,
        texts={**facts.texts, **described},
        retained_sha256=files.retained.sha256 if files.retained else None,
        held_out_sha256=files.held_out.sha256 if files.held_out else None,
    )


def _load(source: ModelSource, place: Place, report: Reporter) -> Loaded:
    report(Progress(Phase.LOADING, 0, 1))
    loaded = load(source, device=place.device, dtype=place.dtype)
    report(Progress(Phase.LOADING, 1, 1))
    return loaded


def _publish(loaded: Loaded, out: Path, facts: Facts, report: Reporter) -> Record:
    report(Progress(Phase.EXPORTING, 0, 2))
    with new_folder(out) as unfinished:
        return stages.publish(loaded, unfinished, facts, report)
