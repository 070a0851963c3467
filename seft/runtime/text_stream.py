"""Decodes tokens one after the other. The pieces together are the text of all tokens decoded at once."""

import re
from typing import Any

CONTEXT = 4
"""Tokens that stay before the new ones. A character has up to 4 bytes, so no earlier token changes the new text."""
UNDECIDED = "\ufffd"
"""What a decoder returns for bytes that are not, or not yet, a character."""
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A token of one byte. Such tokens that follow each other become text together, or each the replacement character."""


class TextStream:
    """The text of tokens that arrive one by one. The parts, joined, equal the text of all tokens decoded at once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        added = self._tokenizer.get_added_tokens_decoder()
        self._skipped = {number for number, token in added.items() if token.special}
        self._tokens: list[int] = []
        self._shown = 0

    def step(self, token: int) -> str:
        """Return the text that is certain after this token. It is empty while the next token may still change it."""
        name = self._tokenizer.id_to_token(token)
        if name is None or token in self._skipped:
            return ""
        self._tokens.append(token)
        return "" if BYTE.fullmatch(name) else self._certain(self._text())

    def rest(self) -> str:
        """Return the text that was not certain. No token may follow."""
        return self._text()[self._shown :]

    def _certain(self, text: str) -> str:
        new = text[self._shown :].removesuffix(UNDECIDED)
        self._tokens = self._tokens[-CONTEXT:]
        self._shown = len(self._text().removesuffix(UNDECIDED))
        return new

    def _text(self) -> str:
        text: str = self._tokenizer.decode(self._tokens)
        return text
