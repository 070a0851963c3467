"""Laws of the leash."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from local import processes
from local.processes import LEASH, LocalError


def test_an_owner_that_died_too_early_is_noticed() -> None:
    leash = [sys.executable, "-I", "-S", str(LEASH), "1", str(int(signal.SIGKILL)), "echo", "never"]
    result = subprocess.run(leash, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "process 1, is gone" in result.stderr
    assert not result.stdout


def test_a_leashed_process_gets_its_signal_when_the_owner_is_killed(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time; from pathlib import Path; from local.processes import spawn\n"
        "child = spawn(['sleep', '600'], log=Path(sys.argv[1]), orphaned=signal.SIGTERM)\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    with owner.stdout:
        child = Path(f"/proc/{int(owner.stdout.readline())}")
    while (child / "comm").read_text() != "sleep\n":
        time.sleep(0.01)
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + 5
    while child.exists() and (child / "stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_is_spawned_from_the_main_thread_only(tmp_path: Path) -> None:
    caught: list[LocalError] = []

    def try_it() -> None:
        try:
            processes.spawn(["true"], log=tmp_path / "log", orphaned=signal.SIGKILL)
        except LocalError as error:
            caught.append(error)

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])


def test_a_process_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    deaf = ["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.1; done"]
    process = processes.spawn(deaf, log=tmp_path / "log", orphaned=signal.SIGKILL)
    while "deaf" not in (tmp_path / "log").read_text():
        time.sleep(0.01)
    processes.stop(process, signal.SIGTERM, patience=0.3)
    assert process.returncode == -signal.SIGKILL


def test_the_end_of_a_log_is_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"{number}\n" for number in range(100)))
    assert processes.tail(log, 2) == "98\n99"
