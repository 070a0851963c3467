"""Text becomes one long row of tokens, and the row becomes windows. Packs; does not pad, does not mask."""

from collections.abc import Iterable
from typing import Any, assert_never

import torch
from jaxtyping import Int
from torch import Tensor

from seft.config import CalibrationOrder
from seft.errors import ConfigError, DataError, SourceError
from seft.seeds import generator


def tokenize(texts: Iterable[str], tokenizer: Any) -> Int[Tensor, "tokens"]:
    """All records in one row, the end-of-text token between them and nowhere else."""
    rows: list[Tensor] = []
    for text in texts:
        if rows:
            rows.append(torch.tensor([_end_of_text(tokenizer)]))
        tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        rows.append(torch.tensor(tokens, dtype=torch.int64))
    return torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64)


def windows(
    tokens: Int[Tensor, "tokens"], length: int, count: int, order: CalibrationOrder, seed: int
) -> Int[Tensor, "windows {length}"]:
    """`count` windows of `length` tokens.

    In sequence: the first ones, side by side, and fewer where the text ends. At random: starts drawn evenly, so
    windows may overlap. DataError where the text is shorter than one window.
    """
    in_sequence = side_by_side(tokens, length)
    match order:
        case CalibrationOrder.SEQUENTIAL:
            return in_sequence[:count]
        case CalibrationOrder.RANDOM:
            starts = torch.randint(len(tokens) - length + 1, (count,), generator=generator(seed, "windows"))
            return tokens[starts[:, None] + torch.arange(length)]
        case _:
            assert_never(order)


def side_by_side(tokens: Int[Tensor, "tokens"], length: int) -> Int[Tensor, "windows {length}"]:
    """All windows one after the other, the rest at the end left out; no copy. DataError where not one is full."""
    count = len(tokens) // length
    if not count:
        raise DataError(
            f"the text must fill one window of {length} tokens; it has {len(tokens)}. Give more text or fewer tokens."
        )
    return tokens[: count * length].view(count, length)


def must_be_known(tokens: Int[Tensor, "..."], model: Any) -> None:
    """SourceError where a token has no embedding: some tokenizers know more tokens than the model beside them.

    On CUDA such a token would end the whole process with a message that names neither.
    """
    known, largest = len(model.get_input_embeddings().weight), int(tokens.max()) if tokens.numel() else 0
    if largest >= known:
        raise SourceError(
            "model_refused",
            f"every token of the text must have an embedding, of which the model has {known}; the text has token"
            f" {largest}. Put the tokenizer beside the model that was trained with it, or drop that token.",
        )


def _end_of_text(tokenizer: Any) -> int:
    token: int | None = tokenizer.eos_token_id
    if token is None:
        raise ConfigError(
            "tokenizer", "must have an end-of-text token", None, "Set eos_token in tokenizer_config.json."
        )
    return token
