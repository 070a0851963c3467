"""Retained text: windows on which the repaired model learns to predict what the dense model predicted.

Repair on one text improves the model on this text and can damage everything else. So a part of each batch is other
text, and its loss is the divergence from the dense model. The dense model's predictions are recorded before it is
pruned, so no second model is in memory during the training. The text comes from the user, or the dense model
writes it itself, as in LLM-QAT (Liu et al. 2023, arXiv 2305.17888). [ours] A model with a chat template begins with a
question, as in Magpie (Xu et al. 2024, arXiv 2406.08464), and samples at a temperature below 1.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria

from seft.checkpoint.outputs import disk_errors
from seft.config import RepairConfig
from seft.data.chat import question_start
from seft.data.packing import Packed, Predictions
from seft.data.text import require_known_tokens
from seft.data.tokens import bos_tokens, eos_token, text_tokens
from seft.distill import TOP_LOGITS
from seft.errors import ConfigError
from seft.loss import LOGITS_AT_ONCE
from seft.models.predictor import Predictor
from seft.report import Phase, Progress, Reporter, silent
from seft.seeds import generator

TEMPERATURE = 0.8
"""Temperature at which the dense model writes. At 1, small models soon write nonsense."""
MEASURED = 8
"""One of this number of windows is not trained on. The loss on these windows shows what the model has kept."""
REPORTED = 4
"""Number of tokens of a window between two reports."""
WRITTEN_PARTS = 3
"""Time to write a token, relative to the time to record its prediction. Used for the progress only."""
LONGEST_START = 0.5
"""Largest part of a window that the start tokens may fill."""


def require_retained(config: RepairConfig, retained: Packed | None) -> None:
    """Raise ConfigError if the retained text is not what `config` needs: windows of its length, with predictions."""
    if config.retains and retained is None:
        raise ConfigError("retain", "must be none if there is no retained text", str(config.retain), "Give the text.")
    if retained is None:
        return
    if not config.retains:
        way_out = "Set retain to written or dataset, or give no retained text."
        raise ConfigError("retain", "must not be none if there is retained text", str(config.retain), way_out)
    shape = tuple(retained.tokens.shape)
    if retained.teacher is None or not len(retained) or shape[1] != config.sequence_tokens:
        rule = f"must be at least one window of {config.sequence_tokens} tokens with the dense model's predictions"
        raise ConfigError("retained", rule, str(shape), "Give more text, or make it with seft.retain.", lead="it has")


def start_tokens(tokenizer: Any) -> list[int]:
    """Return the tokens from which the model writes on: the start of a question, or the start of a text.

    This runs the chat template of the model.
    """
    if question := question_start(tokenizer):
        return text_tokens(question, tokenizer)
    return bos_tokens(tokenizer) or [eos_token(tokenizer)]


@torch.no_grad()
def write_windows(model: Any, start: Sequence[int], config: RepairConfig, report: Reporter = silent) -> Packed:
    """Return `config.retained_windows` windows of `sequence_tokens` tokens. The model writes them after `start`.

    `start` is a list of tokens, which are not trained on. The model reads no text. Reports the first part of the phase
    WRITING; `with_predictions` reports the last. The text follows from the seed and the model, on devices of one kind.
    Raises ConfigError if `start` is too long.
    """
    length = config.sequence_tokens
    if len(start) > LONGEST_START * length:
        rule = f"must be at least {math.ceil(len(start) / LONGEST_START)} to retain written text, because this model"
        raise ConfigError(
            "sequence_tokens",
            f"{rule} starts every conversation with {len(start)} tokens",
            length,
            "Raise it, or set retain to none.",
        )
    count = config.retained_windows
    at_once = config.written_at_once
    first = torch.tensor(list(start), device=model.device)
    require_known_tokens(first.cpu(), model)
    seeds, parts = generator(config.seed, "retained text"), []
    with _sampling(model, length):
        for done in range(0, count, at_once):
            rows = first.expand(min(at_once, count - done), -1)
            progress = _Progress(report, done * length, count * length)
            with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
                torch.manual_seed(int(torch.randint(1 << 62, (), generator=seeds)))
                written = model.generate(
                    rows, attention_mask=torch.ones_like(rows), use_cache=True, stopping_criteria=[progress]
                )
            parts.append(written.cpu())
    return Packed.plain(torch.cat(parts), len(start))


class _Progress(StoppingCriteria):  # type: ignore[misc]
    """Reports how many of all tokens are written. `before` tokens were written earlier. It never stops the writing."""

    def __init__(self, report: Reporter, before: int, total: int) -> None:
        self._report, self._before, self._total = report, before, total

    def __call__(self, input_ids: Tensor, *_: Any, **__: Any) -> Tensor:
        if input_ids.shape[1] % REPORTED == 0:
            done, total = self._before + input_ids.numel(), self._total
            self._report(Progress(Phase.WRITING, WRITTEN_PARTS * done, (WRITTEN_PARTS + 1) * total))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@contextmanager
def _sampling(model: Any, length: int) -> Iterator[None]:
    """Make the model sample windows of `length` tokens, whatever its own settings are."""
    settings = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0, max_length=length, pad_token_id=0
    )
    try:
        yield
    finally:
        model.generation_config = settings


@torch.no_grad()
def with_predictions(model: Any, windows: Packed, report: Reporter = silent, *, written: bool = False) -> Packed:
    """Return the windows with the predictions of the model for each trained token.

    Reports the phase WRITING, or its last part if the windows are `written`, the result of `write_windows`.
    """
    require_known_tokens(windows.tokens, model)
    predictor = Predictor(model)
    top, together = min(TOP_LOGITS, predictor.vocabulary), max(1, LOGITS_AT_ONCE // predictor.vocabulary)
    before = WRITTEN_PARTS * len(windows) if written else 0
    tokens = torch.zeros(*windows.tokens.shape, top, dtype=torch.int32)
    logarithms = torch.zeros(*windows.tokens.shape, top)
    for number in range(len(windows)):
        window = windows[number : number + 1]
        last = predictor.rows(window.to(model.device)).last
        found = [predictor.logits(some).log_softmax(1).topk(top) for some in torch.split(last, together)]
        tokens[number, window.trained[0]] = torch.cat([each.indices for each in found]).cpu().int()
        logarithms[number, window.trained[0]] = torch.cat([each.values for each in found]).cpu().float()
        report(Progress(Phase.WRITING, before + number + 1, before + len(windows)))
    known = torch.ones(len(windows), dtype=torch.bool)
    return replace(windows, teacher=Predictions(tokens, logarithms, known))


def split_retained(retained: Packed) -> tuple[Packed, Packed]:
    """Return the windows to train on, and the last eighth to measure on, at least one, without the predictions."""
    end = len(retained) - max(1, len(retained) // MEASURED)
    return retained[:end], replace(retained[end:], teacher=None)


def save_retained(retained: Packed, path: Path) -> None:
    """Write windows with predictions to the file `path`."""
    assert retained.teacher is not None
    tensors = {
        "tokens": retained.tokens.contiguous(),
        "trained": retained.trained.contiguous(),
        "positions": retained.positions.contiguous(),
        "teacher.tokens": retained.teacher.tokens,
        "teacher.logarithms": retained.teacher.logarithms,
    }
    with disk_errors(path):
        save_file(tensors, path)


def load_retained(path: Path) -> Packed:
    """Return the windows in a file of `save_retained`."""
    tensors: dict[str, Tensor] = load_file(path)
    known = torch.ones(len(tensors["tokens"]), dtype=torch.bool)
    teacher = Predictions(tensors["teacher.tokens"], tensors["teacher.logarithms"], known)
    return Packed(tensors["tokens"], tensors["trained"], tensors["positions"], teacher)
