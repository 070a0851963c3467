"""Create and check ids. An id is a prefix for the kind of object, then a ULID in Crockford's base 32.

A ULID has 48 bits for the time in milliseconds and 80 random bits. So ids sort by time of creation, and lists use
them as cursors.
"""

import re
import secrets
import time
from datetime import datetime
from typing import Literal

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"

Prefix = Literal["job", "file", "ckpt", "key", "req", "hook", "msg", "imp", "hub", "push", "svc"]


def new(prefix: Prefix) -> str:
    """Return a new id such as `job_01jz…`, with 26 characters after the prefix."""
    number = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return _format(prefix, number)


def floor(prefix: Prefix, when: datetime) -> str:
    """Return an id that sorts after all ids created before `when`, and before all ids created later.

    `when` must have a time zone. Python takes a time without one as local time.
    """
    number = max(0, int(when.timestamp() * 1000)) << 80
    return _format(prefix, number)


def pattern(prefix: Prefix) -> str:
    """Return the regular expression of ids with this prefix."""
    return rf"^{prefix}_[0-9a-z]{{26}}$"


def is_id(prefix: Prefix, value: str) -> bool:
    """Return whether `value` has the form of an id with this prefix. If not, no database query is needed."""
    return re.fullmatch(pattern(prefix), value) is not None


def _format(prefix: Prefix, number: int) -> str:
    return f"{prefix}_" + "".join(ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
