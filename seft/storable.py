"""Finds and replaces characters that a database cannot store, or that UTF-8 cannot encode."""

import re

UNSTORABLE = re.compile("[\0\ud800-\udfff]")
"""NUL and halves of surrogate pairs. Postgres cannot store the first, and UTF-8 cannot encode the second."""


def printable(text: str) -> str:
    """Return a text in which the replacement character stands for each of these characters."""
    return UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)
