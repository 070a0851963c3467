"""Converts one record to tokens, and marks the tokens that are trained on. Needs no torch."""

from collections.abc import Sequence
from typing import Any, assert_never

from seft.data.chat import Tokenized, common_length, tokenize_chat
from seft.data.records import Chat, Completion, Record
from seft.errors import ConfigError


def tokenize_record(record: Record, tokenizer: Any, head: Sequence[int]) -> Tokenized:
    """Return the tokens of a record after `head`, which is the result of `bos_tokens`, with a mask of the trained ones.

    A text ends with the end-of-text token.
    """
    match record:
        case str():
            tokens = [*text_tokens(record, tokenizer), eos_token(tokenizer)]
            return Tokenized([*head, *tokens], [False] * len(head) + [True] * len(tokens))
        case Completion():
            return _completion(record, tokenizer, head)
        case Chat():
            return tokenize_chat(record, tokenizer)
        case _:
            assert_never(record)


def bos_tokens(tokenizer: Any) -> list[int]:
    """Return the tokens that the tokenizer puts before every text, or an empty list if there are none.

    The model expects these tokens at the start of each sequence. Most tokenizers add one. That of GLM-4 adds two,
    `[gMASK]<sop>`.
    """
    whole: list[int] = tokenizer("a", verbose=False)["input_ids"]
    text = text_tokens("a", tokenizer)
    starts = (start for start in range(len(whole)) if text and whole[start : start + len(text)] == text)
    return whole[: next(starts, 0)]


def text_tokens(text: str, tokenizer: Any) -> list[int]:
    """Return the tokens of a text, without special tokens before or after them."""
    tokens: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return tokens


def eos_token(tokenizer: Any) -> int:
    """Return the end-of-text token. Raises ConfigError if the tokenizer has none."""
    token: int | None = tokenizer.eos_token_id
    if token is None:
        raise ConfigError(
            "tokenizer",
            "must have an end-of-text token",
            type(tokenizer).__name__,
            "Set eos_token in tokenizer_config.json.",
        )
    return token


def _completion(record: Completion, tokenizer: Any, head: Sequence[int]) -> Tokenized:
    """Return the tokens of prompt and completion as one text. A token that spans both belongs to the completion."""
    tokens = [*head, *text_tokens(record.prompt + record.completion, tokenizer), eos_token(tokenizer)]
    prompt = common_length(tokens, [*head, *text_tokens(record.prompt, tokenizer)])
    return Tokenized(tokens, [False] * prompt + [True] * (len(tokens) - prompt))
