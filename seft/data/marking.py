"""A record as tokens, and which of them are trained on, in the words of transformers' tokenizer. Needs no torch."""

from collections.abc import Sequence
from typing import Any, assert_never

from seft.data.chat import Marked, common, mark_chat
from seft.data.records import Chat, Completion, Record
from seft.errors import ConfigError


def mark(record: Record, tokenizer: Any, head: Sequence[int]) -> Marked:
    """One record, behind `head`, which is `beginning(tokenizer)`. A text ends as where another one follows."""
    match record:
        case str():
            tokens = [*plain_tokens(record, tokenizer), end_of_text(tokenizer)]
            return Marked([*head, *tokens], [False] * len(head) + [True] * len(tokens))
        case Completion():
            return _completion(record, tokenizer, head)
        case Chat():
            return mark_chat(record, tokenizer)
        case _:
            assert_never(record)


def beginning(tokenizer: Any) -> list[int]:
    """The token that a tokenizer puts before every text, if it does: its model knows no text without it."""
    first: int | None = tokenizer.bos_token_id
    return [first] if first is not None and tokenizer("a", verbose=False)["input_ids"][:1] == [first] else []


def plain_tokens(text: str, tokenizer: Any) -> list[int]:
    """Those of the text alone, nothing put before or behind it."""
    tokens: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return tokens


def end_of_text(tokenizer: Any) -> int:
    """The token behind a text; ConfigError where the tokenizer has none."""
    token: int | None = tokenizer.eos_token_id
    if token is None:
        raise ConfigError(
            "tokenizer", "must have an end-of-text token", None, "Set eos_token in tokenizer_config.json."
        )
    return token


def _completion(record: Completion, tokenizer: Any, head: Sequence[int]) -> Marked:
    """Prompt and completion one behind the other. A token that lies across both belongs to the completion."""
    tokens = [*head, *plain_tokens(record.prompt + record.completion, tokenizer), end_of_text(tokenizer)]
    prompt = common(tokens, [*head, *plain_tokens(record.prompt, tokenizer)])
    return Marked(tokens, [False] * prompt + [True] * (len(tokens) - prompt))
