"""Waiting for a condition. There is no time limit, because machines differ in speed: pytest ends a test that hangs."""

import time
from collections.abc import Callable
from pathlib import Path

STOPPED, ZOMBIE = "T", "Z"
"""States of a process, as `state` returns them."""


def wait_for(condition: Callable[[], object], pause: float = 0.02) -> None:
    """Return when the condition is true. Check it again after each pause, in seconds."""
    while not condition():
        time.sleep(pause)


def alive(pid: int) -> bool:
    """Return whether a process with this id exists and is not a zombie."""
    return state(pid) not in {None, ZOMBIE}


def state(pid: int) -> str | None:
    """Return the state of a process, a letter of proc(5), or None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None
