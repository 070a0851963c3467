"""The stack restarts the programs that have ended, also while the disk is full. `test_background` runs real ones."""

import math
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path

import pytest
from typing_extensions import override

from local import program
from local.program import Program
from local.stack import Stack

FULL = Path("/dev/full")
"""A file on a full disk."""


class Sleeper(Program):
    """A program that writes a file before each start."""

    name = "sleeper"
    port_names = ()
    file = FULL
    tries = 0

    @override
    def command(self) -> list[str]:
        self.tries += 1
        self.file.write_text("text")
        return ["sleep", "600"]

    def is_due(self) -> None:
        """Let the pause until the next start be over."""
        self.launched = -math.inf


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    for name in ("SHORTEST_PAUSE", "LONGEST_PAUSE"):
        monkeypatch.setattr(program, name, 600.0)
    stack = Stack(tmp_path / "stack")
    stack.servers.lock.acquire()
    yield stack
    for each in stack.programs:
        each.stop()
    stack.servers.lock.release()


def test_a_full_disk_does_not_end_the_stack(stack: Stack, tmp_path: Path) -> None:
    full, other = Sleeper(stack.servers.lock), Sleeper(stack.servers.lock)
    other.file = tmp_path / "text"
    stack.programs = [full, other]
    for each in (full, other):
        each.is_due()
    log = FULL.open("w")
    with redirect_stdout(log):
        stack.restart_ended()
    with suppress(OSError):  # it writes its lines again
        log.close()
    assert (full.running, other.running) == (False, True)
    stack.restart_ended()
    assert full.tries == 1, "it waits before the next try"
    full.file = tmp_path / "text"
    full.is_due()
    stack.restart_ended()
    assert full.running
