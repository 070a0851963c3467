"""One experiment on quality: prune a model, repair it, and measure it. `benchmarks.quality` runs many of them.

Each model is evaluated on two texts. The first text is of the same kind as the training text. The second text is of
another kind. Repair can improve the perplexity of the first text and worsen the perplexity of the second text. The
evaluation reads the first 20 windows (sequences) of 1024 tokens of each text, in float32. Calibration uses the first 48
windows of 512 tokens of the training text, also in float32.
"""

import hashlib
import json
import math
import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from benchmarks.changes import applied
from benchmarks.questions import read_questions
from benchmarks.turns import peak_bytes
from seft.checkpoint.pruned_state import load_pruned, save_pruned
from seft.config import CalibrationOrder, PruneConfig, RepairConfig, RepairMethod, Retain
from seft.data.packing import cut_windows
from seft.data.records import Record
from seft.data.text import encode, tokenize, windows
from seft.evaluate import mean_loss
from seft.models.load import load
from seft.models.source import find
from seft.models.targets import target_linears
from seft.multiple_choice import accuracy
from seft.prune.loop import prune_model
from seft.repair import Repair
from seft.report import Evolved, Step
from seft.retain import load_retained, save_retained, split_retained, start_tokens
from seft.stages import retained_text, windows_to_retain

TextName = Literal["wikitext2", "gsm8k"]
TRAINED = {"wikitext2": "wikitext2_valid.txt", "gsm8k": "gsm8k_train.jsonl"}
JUDGED = {"wikitext2": "wikitext2_test.txt", "gsm8k": "gsm8k_test.jsonl"}
QUESTIONS = "ARC-Easy_test.json"
RETAINED = "ARC-Easy_train.json"
"""The dataset to retain. It is of a third kind, so that training never sees the kind of the second text."""
TEST_LENGTH, TEST_WINDOWS = 1024, 20
POINTS = 10
"""Number of points of a curve."""
POINT_WINDOWS = 4
"""Number of windows of each text that are judged at a point of a curve, in the dtype of training."""
CODE = (
    "config",
    "data",
    "models",
    "prune",
    "repair",
    "checkpoint/pruned_state.py",
    "multiple_choice.py",
    "distill.py",
    "evaluate.py",
    "loss.py",
    "retain.py",
    "seeds.py",
    "stages.py",
)
"""Parts of the package `seft` on which the figures of an experiment depend."""
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """Settings of one experiment. Without `prune` the model stays dense, and without `repair` it is not trained.

    `adapt` trains the dense model before it is pruned. `change` names an entry of `benchmarks.changes`.
    """

    prune: PruneConfig | None = None
    repair: RepairConfig | None = None
    text: TextName = "wikitext2"
    adapt: RepairConfig | None = None
    change: str = ""
    dtype: str = "bfloat16"

    @property
    def settings(self) -> dict[str, Any]:
        """All settings, as JSON."""
        return completed({field.name: _plain(getattr(self, field.name)) for field in fields(self)})

    @property
    def side(self) -> str:
        """Name of the way to train in `benchmarks.step`. `lora_reprune` takes the same steps as PEFT's LoRA."""
        assert self.repair
        if self.repair.method is RepairMethod.LORA_REPRUNE:
            return "lora"
        return "all" if self.repair.trains_all else str(self.repair.method)

    @property
    def base(self) -> "Cell | None":
        """The experiment whose weights this experiment starts from. None if it starts from the dense model."""
        if self.repair is None:
            return None if self.adapt is None else Cell(repair=self.adapt, text=self.text, dtype=self.dtype)
        if self.prune is None or self.prune.gradual:
            return Cell(adapt=self.adapt, text=self.text, dtype=self.dtype).base
        return Cell(self.prune, text=self.text, adapt=self.adapt, dtype=self.dtype)

    def key(self, model: str) -> str:
        """Return a name that is unique for these settings and this model."""
        return key(model, self.settings)


def key(model: str, settings: Mapping[str, Any]) -> str:
    """Return the name of an experiment with these settings."""
    return _hash({"model": model, **settings})


def completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored settings, with the defaults of settings that were added since they were stored.

    So the keys of older experiments stay the same if a setting is added or a default changes.
    """
    values = {field.name: _plain(field.default) for field in fields(Cell)} | dict(settings)
    for name, kind in (("prune", PruneConfig), ("repair", RepairConfig), ("adapt", RepairConfig)):
        if values[name] is not None:
            values[name] = {field.name: _plain(field.default) for field in fields(kind)} | values[name]
    return values


def code_hash() -> str:
    """Return a hash of the code that determines the figures."""
    package = Path(__file__).parents[1] / "seft"
    digest = hashlib.sha256()
    for name in CODE:
        part = package / name
        for path in sorted(part.rglob("*.py")) if part.is_dir() else [part]:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class Bench:
    """The model, the texts and the folder of weights of the experiments."""

    def __init__(self, model: str, data: Path, work: Path) -> None:
        self.source, self.data, self.work = find(model), data, work
        self.name = Path(model).name
        self._tokens: dict[str, Tensor] = {}

    def weights(self, cell: Cell) -> Path:
        """Return the file of the weights that an experiment makes."""
        return self.work / f"{cell.key(self.name)}-{code_hash()}.safetensors"

    def retained(self, cell: Cell) -> Path | None:
        """Return the file of the text that an experiment retains, or None if it retains none."""
        config = cell.repair
        if config is None or not config.retains:
            return None
        which = (config.retain, config.retained_windows, config.sequence_tokens, config.seed, cell.dtype)
        return self.work / f"retained {_hash([self.name, *map(str, which)])}-{code_hash()}.safetensors"

    def retain(self, cell: Cell) -> None:
        """Make the file of the text that an experiment retains."""
        path, config = self.retained(cell), cell.repair
        assert path
        assert config
        loaded = load(self.source, dtype=getattr(torch, cell.dtype))
        dataset = None
        if config.retain is Retain.DATASET:
            dataset = windows_to_retain(encode(self._records(RETAINED), loaded.tokenizer), config)
        retained = retained_text(loaded, config, start_tokens(loaded.tokenizer), dataset)
        assert retained
        save_retained(retained, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)

    def run(self, cell: Cell, label: str, questions: int = 0) -> Figures:
        """Run one experiment and save its weights. Its base must have been run before.

        With `questions`, the model also answers this number of questions of ARC-Easy, see `answer`.
        """
        loaded = load(self.source, dtype=torch.float32 if cell.repair is None else getattr(torch, cell.dtype))
        figures: Figures = {}
        if cell.base:
            self._load_base(loaded.model, cell)
        with applied(cell.change):
            if cell.repair:
                figures |= self._train(loaded, cell, label)
            elif cell.prune and not cell.prune.gradual:
                figures |= self._prune(loaded, cell)
        if not cell.repair:
            figures["point"] = self._point(loaded)
        figures["peak_bytes"] = peak_bytes("cpu")
        model = self._judged(loaded, cell)
        for name in JUDGED:
            figures[name] = math.exp(mean_loss(model, self.test(name, loaded.tokenizer)))
        if questions:
            figures |= self._answer(loaded, questions)
        weights = [linear.weight for linear in target_linears(model).values()]
        figures["zeros"] = sum(int((weight == 0).sum()) for weight in weights) / sum(map(Tensor.numel, weights))
        return figures

    def answer(self, cell: Cell, questions: int) -> Figures:
        """Return the accuracy of an experiment that has been run, on the first questions of ARC-Easy."""
        loaded = load(self.source, dtype=getattr(torch, cell.dtype))
        load_pruned(loaded.model, self.weights(cell))
        _convert(loaded.model, torch.float32)
        return self._answer(loaded, questions)

    def _answer(self, loaded: Any, questions: int) -> Figures:
        asked = read_questions(self.data / QUESTIONS, questions)
        found = accuracy(loaded.model, loaded.tokenizer, asked)
        return {"accuracy": found.accuracy, "accuracy_per_byte": found.accuracy_per_byte, "asked": len(asked)}

    @torch.no_grad()
    def _load_base(self, model: Any, cell: Cell) -> None:
        """Load the weights of the base of an experiment. Weights that are not pruned are never trained either."""
        assert cell.base
        if cell.repair:
            load_pruned(model, self.weights(cell.base))
            return
        stored = load(self.source, dtype=getattr(torch, cell.dtype)).model
        load_pruned(stored, self.weights(cell.base))
        for own, other in zip(model.parameters(), stored.parameters(), strict=True):
            own.copy_(other)

    def _judged(self, loaded: Any, cell: Cell) -> Any:
        """Save the weights in the dtype of training, and return the model with exactly these weights in float32.

        The buffers of the model are float32 in any case.
        """
        _convert(loaded.model, getattr(torch, cell.dtype))
        path = self.weights(cell)
        save_pruned(loaded.model, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)
        _convert(loaded.model, torch.float32)
        return loaded.model

    def _prune(self, loaded: Any, cell: Cell) -> Figures:
        assert cell.prune
        text = self.tokens(TRAINED[cell.text], loaded.tokenizer)
        calibration = windows(text, cell.prune.tokens, cell.prune.samples, CalibrationOrder.SEQUENTIAL, 0)
        began = time.perf_counter()
        prune_model(loaded.model, calibration, cell.prune)
        return {"seconds": time.perf_counter() - began}

    def _train(self, loaded: Any, cell: Cell, label: str) -> Figures:
        config = cell.repair
        assert config
        text = self.tokens(TRAINED[cell.text], loaded.tokenizer)
        kept = self.retained(cell)
        retained = load_retained(kept) if kept else None
        if retained:
            retained = split_retained(retained)[0]
        teacher = load(self.source, dtype=getattr(torch, cell.dtype)).model if config.distills else None
        repair = Repair(loaded.model, text, config, pruned=cell.prune, teacher=teacher, retained=retained)
        state = self.weights(cell).with_suffix(".state")
        done = _Progress.load(state, repair)
        while not repair.done:
            began = time.perf_counter()
            reports = repair.advance()
            done.losses += [item.loss for item in reports if isinstance(item, Step)]
            events = [item for item in reports if isinstance(item, Evolved)]
            done.events += len(events)
            done.undone += sum(event.undone for event in events)
            done.times.append(time.perf_counter() - began)
            if repair.step * POINTS // config.steps > (repair.step - 1) * POINTS // config.steps:
                judged = self._point(loaded)
                loss = statistics.fmean(done.losses[-max(1, config.steps // POINTS) :])
                done.curve.append({"step": repair.step, "seconds": sum(done.times), "loss": loss, **judged})
                shown = "  ".join(f"{name} {value:.2f}" for name, value in judged.items())
                print(f"{label}: step {repair.step}/{config.steps}  loss {loss:.3f}  {shown}", flush=True)
                if not repair.done:
                    done.save(state, repair)
        trained, grown = repair.trained_values, repair.grown_zeros
        repair.finish()
        shutil.rmtree(state, ignore_errors=True)
        return {
            "trained": trained,
            "grown_zeros": grown,
            "events": done.events,
            "undone": done.undone,
            "seconds": sum(done.times),
            "step_seconds": statistics.median(done.times),
            "tokens": config.steps * config.batch_tokens,
            "curve": done.curve,
        }

    def _point(self, loaded: Any) -> dict[str, float]:
        """Return the perplexities of a point of a curve."""
        texts = {name: self.test(name, loaded.tokenizer)[:POINT_WINDOWS] for name in JUDGED}
        return {name: math.exp(mean_loss(loaded.model, text)) for name, text in texts.items()}

    def test(self, name: str, tokenizer: Any) -> Int[Tensor, "windows tokens"]:
        """Return the windows of a text on which a model is judged."""
        return cut_windows(self.tokens(JUDGED[name], tokenizer), TEST_LENGTH)[:TEST_WINDOWS]

    def tokens(self, name: str, tokenizer: Any) -> Int[Tensor, "tokens"]:
        """Return the tokens of a file. They are kept, because every point of a curve needs them."""
        if name not in self._tokens:
            self._tokens[name] = tokenize(self._records(name), tokenizer)
        return self._tokens[name]

    def _records(self, name: str) -> list[Record]:
        """Return the texts of a file. A question of GSM8K or ARC is a text: the question, a newline and the answer."""
        text = (self.data / name).read_text()
        match Path(name).suffix:
            case ".jsonl":
                return ["{question}\n{answer}".format(**json.loads(line)) for line in text.splitlines()]
            case ".json":
                return ["{instruction}\n{output}".format(**each) for each in json.loads(text)]
            case _:
                return [text]


@dataclass(slots=True)
class _Progress:
    """What an experiment has measured up to a point of its curve. It resumes there, with the state of the repair."""

    curve: list[dict[str, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    events: int = 0
    undone: int = 0

    @classmethod
    def load(cls, folder: Path, repair: Repair) -> "_Progress":
        """Continue a repair from a folder that `save` wrote. Without the folder, nothing has been measured yet."""
        if not folder.exists():
            return cls()
        repair.load(folder / "repair")
        return cls(**json.loads((folder / "progress.json").read_text()))

    def save(self, folder: Path, repair: Repair) -> None:
        new = folder.with_suffix(".new-state")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        repair.save(new / "repair")
        (new / "progress.json").write_text(json.dumps(asdict(self)))
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)


def _convert(model: Any, dtype: torch.dtype) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if value is MISSING:
        return None
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value if isinstance(value, (int, float, type(None))) else str(value)
