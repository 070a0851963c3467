"""Identifiers: a prefix that names the kind, then a ULID (48 bits of milliseconds, 80 random bits, Crockford base 32).

They sort by the time of their making, which is what cursors rely on.
"""

import re
import secrets
import time
from datetime import datetime
from typing import Literal

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"

Prefix = Literal["job", "file", "ckpt", "key", "req", "hook", "msg", "imp", "hub"]


def new(prefix: Prefix) -> str:
    """A fresh identifier such as `job_01jz…`, 26 characters behind the prefix."""
    number = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return _spelt(prefix, number)


def floor(prefix: Prefix, when: datetime) -> str:
    """What sorts before every identifier made from this moment on, and behind all made before."""
    number = max(0, int(when.timestamp() * 1000)) << 80
    return _spelt(prefix, number)


def pattern(prefix: Prefix) -> str:
    """The regular expression of such an identifier."""
    return rf"^{prefix}_[0-9a-z]{{26}}$"


def is_id(prefix: Prefix, value: str) -> bool:
    """Whether `value` could be one; nothing else is worth a look into the database."""
    return re.fullmatch(pattern(prefix), value) is not None


def _spelt(prefix: Prefix, number: int) -> str:
    return f"{prefix}_" + "".join(ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
