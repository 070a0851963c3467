"""Identifiers: a prefix for the kind, then a ULID (48 bits of milliseconds, 80 random bits, Crockford base 32).

They sort by time of creation. Cursors of lists rely on that.
"""

import re
import secrets
import time
from datetime import datetime
from typing import Literal

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"

Prefix = Literal["job", "file", "ckpt", "key", "req", "hook", "msg", "imp", "hub"]


def new(prefix: Prefix) -> str:
    """Return a new identifier such as `job_01jz…`, with 26 characters after the prefix."""
    number = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return _format(prefix, number)


def floor(prefix: Prefix, when: datetime) -> str:
    """Return an identifier that sorts after all that were created before `when`, and before all others."""
    number = max(0, int(when.timestamp() * 1000)) << 80
    return _format(prefix, number)


def pattern(prefix: Prefix) -> str:
    """Return the regular expression of identifiers with this prefix."""
    return rf"^{prefix}_[0-9a-z]{{26}}$"


def is_id(prefix: Prefix, value: str) -> bool:
    """Return whether `value` has the form of such an identifier. Nothing else needs a query."""
    return re.fullmatch(pattern(prefix), value) is not None


def _format(prefix: Prefix, number: int) -> str:
    return f"{prefix}_" + "".join(ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
