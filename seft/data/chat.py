"""Tokenizes conversations with the tokenizer's chat template, and marks the tokens of the assistant's messages.

The template only runs in the sandbox of transformers. If it has generation marks, they decide what is trained on.
Otherwise the template is rendered for growing prefixes of the conversation. The text that an assistant message adds
after its generation prompt, including its end mark, is trained on. If this text cannot be found, the template is
rejected. Needs no torch.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from seft.data.records import Chat, Message, Role
from seft.errors import ConfigError
from seft.storable import shortened

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TODAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
"""Template text that sets a fixed date before a template that uses the current date. It makes runs reproducible."""

MAX_QUOTED = 200
"""Largest number of characters that an error quotes. A template can render, and raise, texts of any length."""


class Tokenized(NamedTuple):
    """Tokens of a record, and a mask of the tokens that are trained on."""

    tokens: list[int]
    trained: list[bool]


def tokenize_chat(chat: Chat, tokenizer: Any) -> Tokenized:
    """Tokenize a conversation, and mark the assistant's tokens as trained on.

    Raises ConfigError if the chat template is unsuitable.
    """
    template = _Template(tokenizer, chat.place)
    tokenized = template.tokenize_marked(chat.messages) if template.marks else template.tokenize(chat.messages)
    if not any(tokenized.trained):
        raise template.error("must render the assistant's messages", template.render(chat.messages))
    return tokenized


def question_start(tokenizer: Any) -> str | None:
    """Return what the chat template writes before the first question, or None if it has no such text."""
    try:
        template = _Template(tokenizer)
        first, second = (template.render([Message(Role.USER, question)]) for question in "01")
    except ConfigError:
        return None
    return first[: common_length(first, second)] if first != second else None


class _Template:
    """The chat template of a tokenizer. Errors name the `place` of the conversation."""

    def __init__(self, tokenizer: Any, place: str = "") -> None:
        if not tokenizer.chat_template:
            kind = type(tokenizer).__name__
            way_out = "Choose the instruct version of the model, or write the records as prompt and completion."
            raise ConfigError("tokenizer", "must have a chat template for records with `messages`", kind, way_out)
        self._tokenizer = tokenizer
        self._about = f"for {place} it" if place else "it"
        try:
            self._text: str = tokenizer.get_chat_template()
        except ValueError as error:
            way_out = "Give the tokenizer one template, or write the records as prompt and completion."
            names = ", ".join(tokenizer.chat_template)
            raise ConfigError("chat_template", "must have one that is the default", names, way_out) from error
        self.marks = _MARKS.search(self._text) is not None
        if "strftime_now" in self._text:
            self._text = _TODAY + self._text

    def tokenize_marked(self, messages: Sequence[Message]) -> Tokenized:
        """Tokenize a conversation, with the mask that the generation marks of the template give."""
        encoding = self._apply(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        return Tokenized(encoding["input_ids"], [bool(trained) for trained in encoding["assistant_masks"]])

    def tokenize(self, messages: Sequence[Message]) -> Tokenized:
        """Tokenize a conversation, with a mask made by a search for the assistant's messages in the rendered text."""
        whole = self.render(messages)
        spans = [
            self._span(whole, messages, number)
            for number, message in enumerate(messages)
            if message.role is Role.ASSISTANT
        ]
        bounds = [bound for span in spans for bound in span]
        tokens, *prefixes = self._token_lists([whole, *(whole[:bound] for bound in bounds)])
        # The last token of a prefix may differ in the whole text. There it then belongs to what comes after the prefix.
        places = [common_length(tokens, prefix) for prefix in prefixes]
        trained = [False] * len(tokens)
        for start, end in zip(places[::2], places[1::2], strict=True):
            trained[start:end] = [True] * (end - start)
        return Tokenized(tokens, trained)

    def render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """Return the conversation as text. With `prompt`, the generation prompt follows it."""
        text: str = self._apply(messages, tokenize=False, add_generation_prompt=prompt)
        return text

    def error(self, rule: str, text: str) -> ConfigError:
        """Return the error for a template that breaks `rule`. `text` is what the template rendered."""
        way_out = "Add {% generation %} marks to the template, or write the records as prompt and completion."
        return ConfigError("chat_template", rule, shortened(text, MAX_QUOTED), way_out, lead=f"{self._about} rendered")

    def _span(self, whole: str, messages: Sequence[Message], number: int) -> tuple[int, int]:
        """Return the start and the end of assistant message `number` in the whole rendered text."""
        before, until = self.render(messages[:number], prompt=True), self.render(messages[: number + 1])
        start, content = len(before), messages[number].content.strip()
        if not whole.startswith(before):
            raise self.error(
                f"must render the beginning up to message {number} unchanged in the whole conversation", whole
            )
        place = whole.find(content, start)
        between, behind = whole[start:place], whole[place + len(content) :]
        # Some templates add text before the content of the last message, such as the empty thoughts of Qwen3.
        own, pattern = until[start:], re.compile(f"(?={re.escape(content)})")
        places = [match.start() for match in pattern.finditer(own) if own[: match.start()].endswith(between)]
        if place < 0 or not places:
            raise self.error(f"must render the content of assistant message {number} unchanged", whole)
        end = place + len(content)
        return start, end + max(common_length(behind, own[own_place + len(content) :]) for own_place in places)

    def _apply(self, messages: Sequence[Message], **options: Any) -> Any:
        try:
            dicts = [asdict(message) for message in messages]
            return self._tokenizer.apply_chat_template(dicts, chat_template=self._text, **options)
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # the template is a program of the model's author
            roles = ", ".join(message.role for message in messages)
            way_out = "Remove such conversations, or write the records as prompt and completion."
            rule = f"must render every conversation without an error ({shortened(str(error), MAX_QUOTED)})"
            raise ConfigError(
                "chat_template", rule, roles, way_out, lead=f"{self._about} failed for the roles"
            ) from error

    def _token_lists(self, texts: Sequence[str]) -> list[list[int]]:
        tokens: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return tokens


def common_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return the length of the common prefix of two sequences."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (left, right) in enumerate(pairs) if left != right), min(len(first), len(second)))
