"""A conversation as the tokenizer's own chat template writes it, and which tokens of that the assistant says.

The template runs in the sandbox of transformers and nowhere else. Where it marks what the assistant says, its marks
count. Elsewhere the template is run on growing beginnings of the conversation: what a message of the assistant adds
behind the header that invites it, its end mark included, is what is trained on. A template under which that cannot be
found is refused. Needs no torch.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from jinja2 import TemplateError

from seft.data.records import Chat, Message, Role
from seft.errors import ConfigError

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TODAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
"""Before a template that asks for the date: it gets always the same one, or a run would not be the same tomorrow."""


class Marked(NamedTuple):
    """Tokens, and which of them are trained on."""

    tokens: list[int]
    trained: list[bool]


def mark_chat(chat: Chat, tokenizer: Any) -> Marked:
    """Tokens of a conversation, those of the assistant trained on. ConfigError where the template does not do."""
    template = _Template(tokenizer)
    marked = template.marked(chat.messages) if template.marks else template.searched(chat.messages)
    if not any(marked.trained):
        raise template.refused("must write what the assistant says", template.write(chat.messages))
    return marked


class _Template:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            way_out = "Take the model's instruct version, or write the records as prompt and completion."
            raise ConfigError("tokenizer", "must have a chat template to read messages", None, way_out)
        self._tokenizer = tokenizer
        self._text: str = tokenizer.get_chat_template()
        self.marks = _MARKS.search(self._text) is not None
        if "strftime_now" in self._text:
            self._text = _TODAY + self._text

    def marked(self, messages: Sequence[Message]) -> Marked:
        """Tokens and mask where the template marks what the assistant says."""
        made = self._apply(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        return Marked(made["input_ids"], [bool(trained) for trained in made["assistant_masks"]])

    def searched(self, messages: Sequence[Message]) -> Marked:
        """Tokens and mask where it does not."""
        whole = self.write(messages)
        spans = [
            self._span(whole, messages, number)
            for number, message in enumerate(messages)
            if message.role is Role.ASSISTANT
        ]
        bounds = [bound for span in spans for bound in span]
        tokens, *beginnings = self._tokens([whole, *(whole[:bound] for bound in bounds)])
        # A beginning may end in another token than the whole has there: such a token belongs to what comes after it.
        places = [common(tokens, beginning) for beginning in beginnings]
        trained = [False] * len(tokens)
        for start, end in zip(places[::2], places[1::2], strict=True):
            trained[start:end] = [True] * (end - start)
        return Marked(tokens, trained)

    def write(self, messages: Sequence[Message], *, invite: bool = False) -> str:
        """The conversation as text; with the header that invites an answer behind it."""
        text: str = self._apply(messages, tokenize=False, add_generation_prompt=invite)
        return text

    def refused(self, rule: str, seen: str) -> ConfigError:
        """The error for a template that does something else."""
        shown = seen if len(seen) <= 200 else f"{seen[:100]}…{seen[-99:]}"
        way_out = "Mark it in the template by {% generation %}, or write the records as prompt and completion."
        return ConfigError("chat_template", rule, shown, way_out)

    def _span(self, whole: str, messages: Sequence[Message], number: int) -> tuple[int, int]:
        """Where in the whole text a message of the assistant begins and ends."""
        before, until = self.write(messages[:number], invite=True), self.write(messages[: number + 1])
        start, said = len(before), messages[number].content.strip()
        if not whole.startswith(before):
            raise self.refused(f"must write the beginning of a conversation as it is (message {number})", whole)
        place = whole.find(said, start)
        between, behind = whole[start:place], whole[place + len(said) :]
        # Of the answer that ends a conversation some templates write more before what is said: Qwen3's empty thoughts.
        own, again = until[start:], re.compile(f"(?={re.escape(said)})")
        places = [found.start() for found in again.finditer(own) if own[: found.start()].endswith(between)]
        if place < 0 or not places:
            raise self.refused(f"must write what the assistant says as it is (message {number})", whole)
        return start, place + len(said) + max(common(behind, own[found + len(said) :]) for found in places)

    def _apply(self, messages: Sequence[Message], **how: Any) -> Any:
        try:
            said = [asdict(message) for message in messages]
            return self._tokenizer.apply_chat_template(said, chat_template=self._text, **how)
        except (TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(message.role for message in messages)
            way_out = "Leave such conversations out, or write the records as prompt and completion."
            raise ConfigError("chat_template", f"must take a conversation ({error})", roles, way_out) from error

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        made: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return made


def common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How far two sequences are equal."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))
