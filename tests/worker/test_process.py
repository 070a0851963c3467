"""A training process that writes faster than the worker handles its lines has to wait."""

import sys
import threading
import time
from pathlib import Path

import pytest

from tests.waiting import wait_for
from worker import process
from worker.process import Process

LINES, LINE = 100, b"x" * 99_999 + b"\n"
WRITER = (
    sys.executable,
    "-c",
    f"import os, sys; os.fdopen(int(sys.argv[2]), 'wb').writelines([b'x' * 99_999 + b'\\n'] * {LINES})",
)


@pytest.mark.parametrize("killed", [False, True])
def test_lines_that_are_not_handled_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, killed: bool
) -> None:
    monkeypatch.setattr(process, "MAX_WAITING_BYTES", 10 * len(LINE))
    lines, ended = list[bytes](), threading.Event()
    writer = Process(WRITER, tmp_path, lines.append, lambda _: ended.set())
    wait_for(lambda: len(lines) == 10)
    time.sleep(0.2)
    assert len(lines) == 10
    if killed:
        writer.kill()
        wait_for(ended.is_set)
        assert len(lines) < LINES
        return
    for number in range(LINES):
        wait_for(lambda number=number: len(lines) > number)  # type: ignore[misc]
        writer.handled(lines[number])
    wait_for(ended.is_set)
    assert lines == [LINE] * LINES
