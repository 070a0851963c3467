"""Prepares texts of other people for storing and showing: their characters and their length."""

import re

UNSTORABLE = re.compile("[\0\ud800-\udfff]")
"""NUL, which Postgres cannot store, and halves of surrogate pairs, which UTF-8 cannot encode."""


def printable(text: str) -> str:
    """Return a text in which the replacement character stands for each of these characters."""
    return UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def shortened(text: str, most: int) -> str:
    """Return the text if it has at most `most` characters. Otherwise, an ellipsis replaces its middle."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]}…{text[half + 1 - most :]}"
