"""Converts records to tokens, and tokens to windows (sequences of equal length) for calibration and evaluation."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, assert_never

import torch
from jaxtyping import Int
from torch import Tensor

from seft.config import CalibrationOrder
from seft.data.packing import Encoded, Packed, concatenate, cut_windows, pack_whole, room_after, with_head
from seft.data.records import Chat, Completion, Record
from seft.data.tokens import bos_tokens, eos_token, text_tokens, tokenize_record
from seft.errors import DataError, SourceError
from seft.seeds import generator


def encode(
    records: Iterable[Record], tokenizer: Any, heartbeat: Callable[[int], None] = lambda _: None
) -> list[Encoded]:
    """Return the tokens of each record. The end-of-text token is between texts, and at the end of each completion.

    Calls `heartbeat` before each record with the number of records that are done. It may raise an error to stop.
    """
    head, encoded = bos_tokens(tokenizer), list[Encoded]()
    for record in records:
        heartbeat(len(encoded))
        match record:
            case str():
                if encoded:
                    encoded[-1] = Encoded.text([*encoded[-1].tokens.tolist(), eos_token(tokenizer)], head)
                encoded.append(Encoded.text(text_tokens(record, tokenizer), head))
            case Completion() | Chat():
                tokens, trained = tokenize_record(record, tokenizer, head)
                own = head if tokens[: len(head)] == head else []  # A chat template may write none of these tokens.
                mask = torch.tensor(trained, dtype=torch.bool)
                mask[: len(own)] = False
                encoded.append(Encoded(torch.tensor(tokens, dtype=torch.int64), mask, own))
            case _:
                assert_never(record)
    return encoded


@contextmanager
def named(text: str, *fields: str) -> Iterator[None]:
    """Put the name of a text before the message of a DataError that the `with` block raises.

    `fields` are the fields of a request that set how long the text is, and how long it must be. The message names them.
    """
    try:
        yield
    except DataError as error:
        names = f" The fields of the request for it are {', '.join(fields)}." if fields else ""
        raise DataError(f"{text}: {error}{names}") from error


@contextmanager
def split_described(training: Sequence[Encoded], held_out: Sequence[Encoded]) -> Iterator[None]:
    """Add to a DataError that the `with` block raises how many records and tokens are on each side of the split."""
    try:
        yield
    except DataError as error:
        parts = (
            f"{sum(len(record.tokens) for record in part)} tokens (records: {len(part)})"
            for part in (training, held_out)
        )
        sides = "{} are for training, and {} are held out for evaluation".format(*parts)
        raise DataError(f"{error} The dataset was split: {sides}.") from error


def tokenize(records: Iterable[Record], tokenizer: Any) -> Int[Tensor, "tokens"]:
    """Return the tokens of all records in one tensor."""
    return concatenate(encode(records, tokenizer))


def windows(
    tokens: Int[Tensor, "tokens"],
    length: int,
    count: int,
    order: CalibrationOrder,
    seed: int,
    *,
    head: Sequence[int] = (),
) -> Int[Tensor, "windows {length}"]:
    """Return `count` windows of `length` tokens. Each window begins with the tokens `head`.

    Sequential windows are the first ones of the text; there are fewer if the text is too short. Random windows start at
    uniformly drawn positions, so they may overlap. Raises DataError if the text is shorter than one window, or if a
    window is not longer than `head`.
    """
    length = room_after(head, length)
    sequential = cut_windows(tokens, length)
    match order:
        case CalibrationOrder.SEQUENTIAL:
            return with_head(sequential[:count], head)
        case CalibrationOrder.RANDOM:
            starts = torch.randint(len(tokens) - length + 1, (count,), generator=generator(seed, "windows"))
            return with_head(tokens[starts[:, None] + torch.arange(length)], head)
        case _:
            assert_never(order)


def evaluation_windows(records: Sequence[Encoded], length: int, count: int) -> Packed:
    """Return the first `count` windows of `length` tokens for evaluation, or fewer if the text is too short.

    A window of plain text may contain the end of one record and the start of the next.
    """
    if all(record.cuttable for record in records):
        head = records[0].head if records else ()
        rows = cut_windows(concatenate(records), room_after(head, length))[:count]
        return Packed.plain(with_head(rows, head), len(head))
    return pack_whole(records, length)[:count]


def require_known_tokens(tokens: Int[Tensor, "..."], model: Any) -> None:
    """Raise SourceError if the model has no embedding for a token. Some tokenizers have more tokens than their model.

    On CUDA such a token would end the whole process with a message that names neither the token nor the model.
    """
    embeddings, largest = len(model.get_input_embeddings().weight), int(tokens.max()) if tokens.numel() else 0
    if largest >= embeddings:
        raise SourceError(
            "model_refused",
            f"every token id of the text must be below {embeddings}, the number of embeddings of the model; the text"
            f" has the token id {largest}. Use the tokenizer that the model was trained with, or remove that token.",
        )
