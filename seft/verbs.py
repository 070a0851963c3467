"""The four things this library does with whole models, each as one function: prune, repair, evaluate, inspect.

They tie files to the parts that do the work, and refuse what can be refused before a weight is loaded. They print
nothing: `seft.cli` does.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from seft import harness
from seft.checkpoint import sparsity
from seft.checkpoint.export import export, require_empty
from seft.checkpoint.facts import SPARSITY, Base, Facts, Record, sha256
from seft.checkpoint.verify import verify
from seft.choices import Accuracy, accuracy, read_questions
from seft.config import EvaluateConfig, PruneConfig, RepairConfig
from seft.data import records
from seft.data.packing import pack
from seft.data.text import encode, evaluation_windows, tokenize, windows
from seft.data.tokens import bos_tokens
from seft.errors import ConfigError
from seft.evaluate import mean_loss, perplexity
from seft.models.load import Loaded, load
from seft.models.source import ModelSource, find
from seft.objective import require_teacher
from seft.prune.loop import prune_model
from seft.prune.methods import text_users
from seft.prune.reconstruct import reconstruct
from seft.repair.best import require_held_out
from seft.repair.loop import Repair
from seft.report import Phase, Progress, Reporter, silent


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model is worked on, and in which dtype its weights are held meanwhile."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, device: str, dtype: str) -> "Place":
        """From names; `auto` takes CUDA where there is one."""
        there = torch.cuda.is_available()
        if device == "cuda" and not there:
            raise ConfigError("device", "must be there", device, "Torch finds no CUDA device: say cpu, or auto.")
        return cls("cuda" if there and device == "auto" else device.replace("auto", "cpu"), getattr(torch, dtype))


HOST = Place()


@dataclass(frozen=True, slots=True)
class Score:
    """Perplexity, and over how much text it was taken."""

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
    """Prune a model and write it to the folder `out`, verified. The device holds one block at a time."""
    require_empty(out)
    source = find(reference, revision=revision)
    texts = _calibration(config, calibration)
    loaded = _load(source, replace(place, device="cpu"), report)
    seen = torch.zeros(0, config.tokens, dtype=torch.int64)
    if texts:
        row = tokenize(texts, loaded.tokenizer)
        seen = windows(row, config.tokens, config.samples, config.order, config.seed, head=bos_tokens(loaded.tokenizer))
        config = replace(config, samples=len(seen))
    prune_model(loaded.model, seen, config, report, device=place.device)
    if config.reconstruct_epochs:
        dense = _load(source, replace(place, device="cpu"), report).model
        reconstruct(loaded.model, dense, seen, config, report, device=place.device)
    facts = Facts(
        base=Base.of(source),
        prune=config,
        repair=None,
        scores={},
        evaluate=None,
        grown_zeros=0,
        calibration_sha256=sha256(calibration) if texts and calibration else None,
        dataset_sha256=None,
    )
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
    """Repair a folder that `prune` wrote, and write it to `out`, verified. Budget and pattern are kept.

    `teacher` is a reference to the dense model, where `config` wants to learn from it; `held_out` is a text like `data`
    to judge by, all of it, where `config` wants evaluations.
    """
    require_empty(out)
    require_teacher(config, teacher)
    require_held_out(config, held_out)
    source, teaching = _folder(folder), find(teacher) if teacher else None
    facts = Record.read(folder).facts
    if facts.repair:
        raise ConfigError("folder", "must be pruned and not repaired yet", str(folder), "Name the pruned folder.")
    texts, judges = records.read(data), records.read(held_out) if held_out else []
    loaded = _load(source, place, report)
    training = pack(encode(texts, loaded.tokenizer), config.sequence_tokens)
    judged = pack(encode(judges, loaded.tokenizer), config.sequence_tokens) if held_out else None
    judge = partial(mean_loss, loaded.model, judged) if judged else None
    dense = _load(teaching, place, report).model if teaching else None
    work = Repair(loaded.model, training, config, pruned=facts.prune, teacher=dense, judge=judge)
    work.run(report)
    work.finish(report)
    grown, last, kept = work.grown_zeros, work.step, work.kept_step
    # What comes now needs float32: beside the teacher and the masters the device may have no room for it.
    del work, dense
    loaded.model.to("cpu")
    facts = replace(
        facts,
        repair=config,
        stopped_at=last if last < config.steps else None,
        kept_at=kept if kept < last else None,
        teacher=Base.of(teaching) if teaching else None,
        grown_zeros=grown,
        dataset_sha256=sha256(data),
        scores={},
        evaluate=None,
    )
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
    """Perplexity of any model over the first windows of a text; fewer windows where there are fewer."""
    source = find(reference, revision=revision)
    texts = records.read(data)
    loaded = _load(source, place, report)
    seen = evaluation_windows(encode(texts, loaded.tokenizer), config.tokens, config.windows)
    return Score(perplexity(loaded.model, seen, report), len(seen), config.tokens)


def answer(
    reference: str, *, choices: Path, revision: str | None = None, place: Place = HOST, report: Reporter = silent
) -> Accuracy:
    """Accuracy of any model on the multiple-choice questions of a file."""
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
    """What lm-evaluation-harness measures of any model under a task's name, or one of the YAML files of `folder`."""
    loaded = _load(find(reference, revision=revision), place, report)
    return harness.run_task(loaded.model, loaded.tokenizer, task, folder)


def inspect(folder: Path) -> tuple[sparsity.Sparsity, Record | None]:
    """Count a folder's files; with what `sparsity.json` says of it where there is one."""
    _folder(folder)
    return sparsity.of_folder(folder), Record.read(folder) if (folder / SPARSITY).exists() else None


def _folder(path: Path) -> ModelSource:
    if not path.is_dir():
        raise ConfigError("folder", "must be a folder with a model", str(path), "Check the path.")
    return find(str(path.resolve()))


def _calibration(config: PruneConfig, calibration: Path | None) -> list[records.Record]:
    wanting = text_users(config)
    if not wanting:
        return []
    if calibration is None:
        way_out = "Name a .jsonl or .txt file, or take magnitude alone."
        raise ConfigError("calibration", f"must be given for {' and '.join(wanting)}", None, way_out)
    return records.read(calibration)


def _load(source: ModelSource, place: Place, report: Reporter) -> Loaded:
    report(Progress(Phase.LOADING, 0, 1))
    loaded = load(source, device=place.device, dtype=place.dtype)
    report(Progress(Phase.LOADING, 1, 1))
    return loaded


def _publish(loaded: Loaded, out: Path, facts: Facts, report: Reporter) -> Record:
    report(Progress(Phase.EXPORTING, 0, 2))
    export(loaded, out, facts)
    report(Progress(Phase.EXPORTING, 1, 2))
    verify(out)
    report(Progress(Phase.EXPORTING, 2, 2))
    return Record.read(out)
