"""Records become tokens, and tokens windows: to calibrate on, to train on, to judge by."""

from collections.abc import Iterable, Sequence
from typing import Any, assert_never

import torch
from jaxtyping import Int
from torch import Tensor

from seft.config import CalibrationOrder
from seft.data.marking import beginning, end_of_text, mark, plain_tokens
from seft.data.packing import Encoded, Packed, fitted, headed, row, side_by_side
from seft.data.records import Chat, Completion, Record
from seft.errors import SourceError
from seft.seeds import generator


def encode(records: Iterable[Record], tokenizer: Any) -> list[Encoded]:
    """Each record as tokens. Texts have the end-of-text token between them, completions have it behind each."""
    head, encoded = beginning(tokenizer), list[Encoded]()
    for record in records:
        match record:
            case str():
                if encoded:
                    encoded[-1] = Encoded.text([*encoded[-1].tokens.tolist(), end_of_text(tokenizer)], head)
                encoded.append(Encoded.text(plain_tokens(record, tokenizer), head))
            case Completion() | Chat():
                tokens, trained = mark(record, tokenizer, head)
                encoded.append(
                    Encoded(torch.tensor(tokens, dtype=torch.int64), torch.tensor(trained, dtype=torch.bool))
                )
            case _:
                assert_never(record)
    return encoded


def tokenize(records: Iterable[Record], tokenizer: Any) -> Int[Tensor, "tokens"]:
    """All records in one row."""
    return row(encode(records, tokenizer))


def windows(
    tokens: Int[Tensor, "tokens"],
    length: int,
    count: int,
    order: CalibrationOrder,
    seed: int,
    *,
    head: Sequence[int] = (),
) -> Int[Tensor, "windows {length}"]:
    """`count` windows of `length` tokens, each of which begins with `head`.

    In sequence: the first ones, side by side, and fewer where the text ends. At random: starts drawn evenly, so
    windows may overlap. DataError where the text is shorter than one window.
    """
    length -= len(head)
    in_sequence = side_by_side(tokens, length)
    match order:
        case CalibrationOrder.SEQUENTIAL:
            return headed(in_sequence[:count], head)
        case CalibrationOrder.RANDOM:
            starts = torch.randint(len(tokens) - length + 1, (count,), generator=generator(seed, "windows"))
            return headed(tokens[starts[:, None] + torch.arange(length)], head)
        case _:
            assert_never(order)


def judging(records: Sequence[Encoded], length: int, count: int) -> Packed:
    """The first `count` windows to judge by, or as many as there are. Texts are read as one, across records."""
    if all(record.cuttable for record in records):
        head = records[0].head if records else ()
        return Packed.plain(headed(side_by_side(row(records), length - len(head))[:count], head))
    return fitted(records, length)[:count]


def require_known_tokens(tokens: Int[Tensor, "..."], model: Any) -> None:
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
