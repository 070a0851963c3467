"""Records become tokens, and tokens windows: to calibrate on, to train on, to judge by."""

from collections.abc import Iterable, Sequence
from typing import Any, assert_never

import torch
from jaxtyping import Int
from torch import Tensor

from seft.chat import common, encode_chat
from seft.config import CalibrationOrder
from seft.errors import ConfigError, SourceError
from seft.packing import Encoded, Packed, fitted, headed, row, side_by_side
from seft.records import Chat, Completion, Record
from seft.seeds import generator


def encode(records: Iterable[Record], tokenizer: Any) -> list[Encoded]:
    """Each record as tokens. Texts have the end-of-text token between them, completions have it behind each."""
    head, encoded = beginning(tokenizer), list[Encoded]()
    for record in records:
        match record:
            case str():
                if encoded:
                    encoded[-1] = Encoded.text([*encoded[-1].tokens.tolist(), _end_of_text(tokenizer)], head)
                encoded.append(Encoded.text(plain_tokens(record, tokenizer), head))
            case Completion():
                encoded.append(_completion(record, tokenizer, head))
            case Chat():
                encoded.append(encode_chat(record, tokenizer))
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


def beginning(tokenizer: Any) -> list[int]:
    """The token that a tokenizer puts before every text, if it does: its model knows no text without it."""
    first: int | None = tokenizer.bos_token_id
    return [first] if first is not None and tokenizer("a", verbose=False)["input_ids"][:1] == [first] else []


def _completion(record: Completion, tokenizer: Any, head: Sequence[int]) -> Encoded:
    """Prompt and completion one behind the other. A token that lies across both belongs to the completion."""
    tokens = [*head, *plain_tokens(record.prompt + record.completion, tokenizer), _end_of_text(tokenizer)]
    trained = torch.ones(len(tokens), dtype=torch.bool)
    trained[: common(tokens, [*head, *plain_tokens(record.prompt, tokenizer)])] = False
    return Encoded(torch.tensor(tokens, dtype=torch.int64), trained)


def plain_tokens(text: str, tokenizer: Any) -> list[int]:
    """Those of the text alone, nothing put before or behind it."""
    tokens: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return tokens


def _end_of_text(tokenizer: Any) -> int:
    token: int | None = tokenizer.eos_token_id
    if token is None:
        raise ConfigError(
            "tokenizer", "must have an end-of-text token", None, "Set eos_token in tokenizer_config.json."
        )
    return token
