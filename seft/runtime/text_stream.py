"""Decodes tokens one after the other. The pieces together are the text of all tokens decoded at once."""

import re
from collections.abc import Sequence
from itertools import dropwhile, islice
from typing import Any

CONTEXT = 4
"""Number of earlier tokens that are decoded with the new ones. A character has up to 4 bytes, so these are enough."""
UNDECIDED = "\ufffd"
"""What a decoder returns for bytes that are not, or not yet, a character."""
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A token of one byte. A run of such tokens is decoded together, or each of them becomes the replacement character."""


class TextStream:
    """The text of tokens that arrive one by one. The parts, joined, equal the text of all tokens decoded at once.

    If the tokens follow the tokens `before`, it is the text that they add to the text of `before`. This can differ from
    decoding them alone, because a decoder may remove the space before a text.
    """

    def __init__(self, tokenizer: Any, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        added = self._tokenizer.get_added_tokens_decoder()
        self._skipped = {number for number, token in added.items() if token.special}
        visible = (token for token in reversed(before) if self._name(token))
        # Tokens of bytes at the end are whole characters. They are left out, so that new bytes do not join them.
        ends = dropwhile(lambda token: BYTE.fullmatch(self._name(token)), visible)
        self._tokens = [*islice(ends, CONTEXT)][::-1]
        self._shown = len(self._text())

    def step(self, token: int) -> str:
        """Return the text that is certain after this token. It is empty while the next token may still change it."""
        name = self._name(token)
        if not name:
            return ""
        self._tokens.append(token)
        return "" if BYTE.fullmatch(name) else self._certain(self._text())

    def rest(self) -> str:
        """Return the text that was not certain. No token may follow."""
        return self._text()[self._shown :]

    def _name(self, token: int) -> str:
        """Return the name of a token, or an empty text if the token has no text."""
        return "" if token in self._skipped else self._tokenizer.id_to_token(token) or ""

    def _certain(self, text: str) -> str:
        new = text[self._shown :].removesuffix(UNDECIDED)
        self._tokens = self._tokens[-CONTEXT:]
        self._shown = len(self._text().removesuffix(UNDECIDED))
        return new

    def _text(self) -> str:
        text: str = self._tokenizer.decode(self._tokens)
        return text
