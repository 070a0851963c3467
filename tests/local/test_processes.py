"""Child processes end with their parent."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from local import processes
from local.processes import LAUNCHER, LocalError
from tests.waiting import alive, wait_for


def test_a_parent_that_died_too_early_is_noticed() -> None:
    launcher = [sys.executable, "-I", "-S", str(LAUNCHER), "1", str(int(signal.SIGKILL)), "echo", "never"]
    result = subprocess.run(launcher, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "process 1, is gone" in result.stderr
    assert not result.stdout


def test_a_process_gets_its_signal_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time; from pathlib import Path; from local.processes import spawn\n"
        "child = spawn(['sleep', '600'], log=Path(sys.argv[1]), parent_death_signal=signal.SIGTERM)\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout:
        child = Path(f"/proc/{int(parent.stdout.readline())}")
    wait_for(lambda: (child / "comm").read_text() == "sleep\n")
    parent.kill()
    parent.wait()
    wait_for(lambda: not alive(int(child.name)))


def test_a_process_is_spawned_from_the_main_thread_only(tmp_path: Path) -> None:
    caught: list[LocalError] = []

    def spawn() -> None:
        try:
            processes.spawn(["true"], log=tmp_path / "log", parent_death_signal=signal.SIGKILL)
        except LocalError as error:
            caught.append(error)

    thread = threading.Thread(target=spawn, daemon=True)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])


def test_a_process_that_ignores_its_signal_is_killed(tmp_path: Path) -> None:
    command = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"]
    process = processes.spawn(command, log=tmp_path / "log", parent_death_signal=signal.SIGKILL)
    while "ready" not in (tmp_path / "log").read_text():
        time.sleep(0.01)
    processes.stop(process, signal.SIGTERM, timeout=0.3)
    assert process.returncode == -signal.SIGKILL


def test_tail_returns_the_last_lines_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"{number}\n" for number in range(100)))
    assert processes.tail(log, 2) == "98\n99"
