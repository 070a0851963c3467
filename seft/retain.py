"""Retained text: windows on which the repaired model learns to predict what the dense model predicted.

Repair on one text improves the model on this text and can damage everything else. So a part of each batch is other
text, and its loss is the divergence from the dense model. The dense model's predictions are recorded before it is
pruned, and so no second model is in memory during the training. The text comes from the user, or the dense model
writes it itself, as in LLM-QAT (Liu et al. 2023, arXiv 2305.17888). [ours] A model with a chat template begins with a
question, as in Magpie (Xu et al. 2024, arXiv 2406.08464), and samples at a temperature below 1.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig

from seft.config import RepairConfig
from seft.data.chat import question_opening
from seft.data.packing import Packed, Predictions
from seft.data.tokens import bos_tokens, eos_token, text_tokens
from seft.distill import TOP_LOGITS
from seft.errors import ConfigError
from seft.models.predictor import Predictor
from seft.report import Phase, Progress, Reporter, silent
from seft.seeds import generator

TEMPERATURE = 0.8
"""Temperature at which the dense model writes. At 1, small models soon write nonsense."""
MEASURED = 8
"""One of this number of windows is not trained on. The loss on these windows shows what the model has kept."""
TOKENS_AT_ONCE = 1 << 13
"""Number of tokens that the model writes at a time, in several windows. It limits the memory of the key-value cache."""


def require_retained(config: RepairConfig, retained: Packed | None) -> None:
    """Raise ConfigError if `config` retains and there is no retained text, or if it does not and there is one."""
    if config.retains and retained is None:
        raise ConfigError("retain", "must be none if there is no retained text", str(config.retain), "Give the text.")
    if retained is not None and not config.retains:
        way_out = "Set retain to written or dataset, or give no retained text."
        raise ConfigError("retain", "must not be none if there is retained text", str(config.retain), way_out)


@torch.no_grad()
def write_windows(model: Any, tokenizer: Any, config: RepairConfig, report: Reporter = silent) -> Packed:
    """Return windows that the model writes, about `retain_tokens` tokens in all. It reads no text.

    Reports the first half of the phase WRITING. `with_predictions` reports the second half.

    The text follows from the seed and the model, on devices of one kind.
    """
    length = config.sequence_tokens
    count, at_once = max(1, config.retain_tokens // length), max(1, TOKENS_AT_ONCE // length)
    opening = torch.tensor(_opening(tokenizer)[: length - 1], device=model.device)
    settings, model.generation_config = (
        model.generation_config,
        GenerationConfig(
            do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0, max_length=length, pad_token_id=0
        ),
    )
    seeds, parts = generator(config.seed, "retained text"), []
    try:
        for done in range(0, count, at_once):
            starts = opening.expand(min(at_once, count - done), -1)
            with torch.random.fork_rng():
                torch.manual_seed(int(torch.randint(1 << 62, (), generator=seeds)))
                parts.append(model.generate(starts, attention_mask=torch.ones_like(starts), use_cache=True).cpu())
            report(Progress(Phase.WRITING, min(count, done + at_once), 2 * count))
    finally:
        model.generation_config = settings
    return Packed.plain(torch.cat(parts))


def _opening(tokenizer: Any) -> list[int]:
    """Return the tokens from which the model writes on: the start of a question, or the start of a text."""
    if opening := question_opening(tokenizer):
        return text_tokens(opening, tokenizer)
    return bos_tokens(tokenizer) or [eos_token(tokenizer)]


@torch.no_grad()
def with_predictions(model: Any, windows: Packed, report: Reporter = silent) -> Packed:
    """Return the windows with the predictions of the model for each trained token."""
    predictor = Predictor(model)
    top = min(TOP_LOGITS, predictor.vocabulary)
    tokens = torch.zeros(*windows.tokens.shape, top, dtype=torch.int32)
    logits = torch.zeros(*windows.tokens.shape, top, dtype=torch.float16)
    for number in range(len(windows)):
        window = windows[number : number + 1]
        found = predictor.logits(predictor.rows(window.to(model.device)).last).topk(top)
        place = window.trained[0]
        tokens[number, place] = found.indices.cpu().int()
        logits[number, place] = found.values.log_softmax(1).cpu().half()
        report(Progress(Phase.WRITING, len(windows) + number + 1, 2 * len(windows)))
    known = torch.ones(len(windows), dtype=torch.bool)
    return Packed(windows.tokens, windows.trained, windows.positions, Predictions(tokens, logits, known))


def split_retained(retained: Packed) -> tuple[Packed, Packed]:
    """Return the windows to train on, and the last eighth to measure on, at least one, without the predictions."""
    end = len(retained) - max(1, len(retained) // MEASURED)
    measured = retained[end:]
    return retained[:end], Packed(measured.tokens, measured.trained, measured.positions)


def save_retained(retained: Packed, path: Path) -> None:
    """Write windows with predictions to the file `path`."""
    assert retained.teacher is not None
    save_file(
        {
            "tokens": retained.tokens.contiguous(),
            "trained": retained.trained.contiguous(),
            "positions": retained.positions.contiguous(),
            "teacher.tokens": retained.teacher.tokens,
            "teacher.logits": retained.teacher.logits,
        },
        path,
    )


def load_retained(path: Path) -> Packed:
    """Return the windows in a file of `save_retained`."""
    tensors: dict[str, Tensor] = load_file(path)
    known = torch.ones(len(tensors["tokens"]), dtype=torch.bool)
    teacher = Predictions(tensors["teacher.tokens"], tensors["teacher.logits"], known)
    return Packed(tensors["tokens"], tensors["trained"], tensors["positions"], teacher)
