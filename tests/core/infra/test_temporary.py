"""A temporary folder outlives neither its `with` block nor, for long, a process that was killed."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from core.infra import temporary

HOLD = """
import signal
from core.infra import temporary

with temporary.folder() as folder:
    (folder / "file").touch()
    print(folder, flush=True)
    signal.pause()
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_folder_of_a_killed_process_is_deleted_and_one_in_use_is_kept(root: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    killed, kept = (Path(process.stdout.readline().strip()) for process in processes if process.stdout)
    try:
        processes[0].kill()
        processes[0].wait()
        with temporary.folder():
            assert killed.exists(), "a new folder must stay"
        long_ago = time.time() - 2 * temporary.NEW_SECONDS
        for folder in (killed, kept):
            os.utime(folder, (long_ago, long_ago))
        with temporary.folder() as own:
            assert set(root.iterdir()) == {own, kept}
        assert set(root.iterdir()) == {kept}
    finally:
        processes[1].send_signal(signal.SIGKILL)
        for process in processes:
            process.communicate()
