"""Operations on whole models, one function per command: prune, repair, evaluate, inspect.

They read the files, check the arguments before any weight is loaded, and run `seft.stages`. They print nothing; the
command line in `seft.cli` does.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from seft import harness, stages
from seft.checkpoint import sparsity
from seft.checkpoint.export import require_empty
from seft.checkpoint.facts import SPARSITY, Facts, Record, sha256
from seft.choices import Accuracy, accuracy, read_questions
from seft.config import EvaluateConfig, PruneConfig, RepairConfig
from seft.data import records
from seft.data.packing import pack
from seft.data.text import encode, evaluation_windows
from seft.devices import choose_device
from seft.errors import ConfigError
from seft.evaluate import perplexity
from seft.models.load import Loaded, load
from seft.models.source import ModelSource, find
from seft.objective import require_teacher
from seft.prune.methods import text_users
from seft.repair.best import require_held_out
from seft.report import Phase, Progress, Reporter, silent


@dataclass(frozen=True, slots=True)
class Place:
    """Device on which a model runs, and dtype of its weights there."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, device: str, dtype: str) -> "Place":
        """Return the place for the names of a device and a dtype. The device `auto` is CUDA if it is available."""
        return cls(choose_device(device), getattr(torch, dtype))


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
    """Prune a model, write it to the folder `out` and verify the folder. Only one block at a time is on the device."""
    require_empty(out)
    source = find(reference, revision=revision)
    texts = _read_calibration(config, calibration)
    host = replace(place, device="cpu")
    loaded = _load(source, host, report)
    windows = stages.calibration_windows(encode(texts, loaded.tokenizer), loaded.tokenizer, config)
    if texts:
        config = replace(config, samples=len(windows))

    def load_dense() -> Any:
        return _load(source, host, report).model

    stages.prune(loaded, windows, config, load_dense, report, device=place.device)
    facts = stages.pruned_facts(source, config, sha256(calibration) if texts and calibration else None)
    return _publish(loaded, out, facts, report)


def repair(
    folder: Path,
    config: RepairConfig,
    out: Path,
    *,
    data: Path,
    teacher: str | None = None,
    held_out: Path | None = None,
    place: Place = HOST,
    report: Reporter = silent,
) -> Record:
    """Repair the model in a folder that `prune` wrote, write the result to `out` and verify it.

    The number of nonzeros does not increase, and the N:M pattern is kept. `teacher` is a reference to the dense model;
    it is required if `config` distills. `held_out` is a text in a format of `data`, read completely; it is required if
    `config` evaluates.
    """
    require_empty(out)
    require_teacher(config, teacher)
    require_held_out(config, held_out)
    source, teacher_source = _find_folder(folder), find(teacher) if teacher else None
    facts = Record.read(folder).facts
    if facts.repair:
        raise ConfigError(
            "folder", "must be pruned and not repaired yet", str(folder), "Give the folder that seft prune wrote."
        )
    texts, held_out_texts = records.read(data), records.read(held_out) if held_out else []
    loaded = _load(source, place, report)
    training = pack(encode(texts, loaded.tokenizer), config.sequence_tokens)
    held_out_windows = pack(encode(held_out_texts, loaded.tokenizer), config.sequence_tokens) if held_out else None

    def load_teacher() -> Any:
        assert teacher_source is not None
        return _load(teacher_source, place, report).model

    work = stages.start_repair(
        loaded, training, config, pruned=facts.prune, load_teacher=load_teacher, held_out=held_out_windows
    )
    work.run(report)
    result = stages.finish_repair(work, report)
    # Export needs float32 weights. With teacher and master weights on the device, its memory may not be enough.
    del work
    loaded.model.to("cpu")
    facts = stages.repaired_facts(facts, config, result, teacher=teacher_source, dataset_sha256=sha256(data))
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
    """Return the perplexity of a model over the first windows of a text, or over all if there are too few."""
    source = find(reference, revision=revision)
    texts = records.read(data)
    loaded = _load(source, place, report)
    windows = evaluation_windows(encode(texts, loaded.tokenizer), config.tokens, config.windows)
    return Score(perplexity(loaded.model, windows, report), len(windows), config.tokens)


def evaluate_choices(
    reference: str, *, choices: Path, revision: str | None = None, place: Place = HOST, report: Reporter = silent
) -> Accuracy:
    """Return the accuracy of a model on a file of multiple-choice questions."""
    source = find(reference, revision=revision)
    questions = read_questions(choices)
    loaded = _load(source, place, report)
    return accuracy(loaded.model, loaded.tokenizer, questions, report)


def run_task(
    reference: str,
    *,
    task: str,
    folder: Path | None,
    revision: str | None = None,
    place: Place = HOST,
    report: Reporter = silent,
) -> dict[str, float]:
    """Return the metrics of a task of lm-evaluation-harness, or of a task that a YAML file in `folder` defines."""
    loaded = _load(find(reference, revision=revision), place, report)
    return harness.run_task(loaded.model, loaded.tokenizer, task, folder)


def inspect(folder: Path) -> tuple[sparsity.Sparsity, Record | None]:
    """Return the counts of zeros in the files of a folder, and the content of its `sparsity.json` or None."""
    _find_folder(folder)
    return sparsity.of_folder(folder), Record.read(folder) if (folder / SPARSITY).exists() else None


def _find_folder(path: Path) -> ModelSource:
    if not path.is_dir():
        raise ConfigError("folder", "must be a folder with a model", str(path), "Check the path.")
    return find(str(path.resolve()))


def _read_calibration(config: PruneConfig, calibration: Path | None) -> list[records.Record]:
    names = text_users(config)
    if not names:
        return []
    if calibration is None:
        way_out = "Give a .jsonl or .txt file, or use magnitude without refinement and reconstruction."
        raise ConfigError("calibration", f"must be given for {' and '.join(names)}", None, way_out)
    return records.read(calibration)


def _load(source: ModelSource, place: Place, report: Reporter) -> Loaded:
    report(Progress(Phase.LOADING, 0, 1))
    loaded = load(source, device=place.device, dtype=place.dtype)
    report(Progress(Phase.LOADING, 1, 1))
    return loaded


def _publish(loaded: Loaded, out: Path, facts: Facts, report: Reporter) -> Record:
    report(Progress(Phase.EXPORTING, 0, 2))
    return stages.publish(loaded, out, facts, report)
