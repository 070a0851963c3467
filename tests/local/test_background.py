"""The stack in the background: it can be found, restarts what has ended, and leaves no process behind."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2
import pytest

from core.doctor import CHECKS
from local import background
from local.background import Running
from local.folder import FolderLock
from seft.client import Client
from seft.client.errors import ApiProblem
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("my stack")


@pytest.fixture(scope="module")
def stacks() -> Iterator[ExitStack]:
    with ExitStack() as stacks:
        yield stacks


@pytest.fixture
def stack(folder: Path, stacks: ExitStack) -> Running:
    """A running stack, started again if a test has ended it. The environment names a proxy that does not exist."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        return background.find(folder) or stacks.enter_context(background.attached(folder, print))


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "local", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )


def operations(folder: Path) -> list[str]:
    """Return the commands of an operator that `up` prints: doctor, a new key, down."""
    return re.findall(r"^ +(\(cd .*\))$", command("up", "--folder", str(folder)).stdout, re.MULTILINE)


def members(folder: Path) -> list[int]:
    """Return the ids of processes with an open file of this stack's folder, or its path in their environment."""
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            files = [str(file.readlink()) for file in (process / "fd").iterdir()]
            named = str(folder).encode() in (process / "environ").read_bytes()
            if named or any(file.startswith(f"{folder}/") for file in files):
                pids.append(int(process.name))
    return pids


def is_ready(stack: Running) -> bool:
    try:
        return httpx2.get(f"{stack.url}/readyz").status_code == 200
    except httpx2.HTTPError:
        return False


def test_a_supervisor_is_found_while_it_opens_and_closes_files(tmp_path: Path) -> None:
    lock, number = FolderLock(tmp_path), os.open(os.devnull, os.O_RDONLY)
    lock.acquire()
    os.close(number)
    done = threading.Event()

    def toggle() -> None:
        while not done.is_set():
            os.close(os.open(os.devnull, os.O_RDONLY))

    thread = threading.Thread(target=toggle, daemon=True)
    thread.start()
    try:
        assert {lock.holder() for _ in range(300)} == {os.getpid()}
    finally:
        done.set()
        thread.join()
        lock.release()


def test_up_prints_the_address_of_a_running_stack(stack: Running, folder: Path) -> None:
    result = command("up", "--folder", str(folder))
    assert result.returncode == 0
    assert f"export SEFT_URL={stack.url} SEFT_API_KEY={stack.api_key}" in result.stdout


def test_the_printed_commands_of_an_operator_work_and_the_untouched_models_are_right(
    stack: Running, folder: Path, tmp_path: Path
) -> None:
    assert (folder / "env").stat().st_mode & 0o777 == 0o600
    doctor, keys, _ = operations(folder)
    others = {name: value for name, value in os.environ.items() if not name.startswith("SEFT_")}
    ended = subprocess.run(["sh", "-c", doctor], cwd=tmp_path, env=others, capture_output=True, text=True, check=False)
    findings = dict(re.findall(r"^(\w+) +(\w+)", line)[0][::-1] for line in ended.stdout.splitlines() if line[0] != " ")
    assert findings.keys() == {"settings", *CHECKS}, ended.stderr
    # The free space and the kernel are those of the machine.
    assert {name for name, state in findings.items() if state == "WRONG"} <= {"disk", "device"}
    assert findings["models"] == "ok"
    made = subprocess.run(["sh", "-c", keys], cwd=tmp_path, env=others, capture_output=True, text=True, check=True)
    with Client(stack.url, made.stdout.strip()) as client:
        assert list(client.jobs()) == []


def test_a_client_uploads_a_dataset_and_errors_name_the_line(stack: Running, tmp_path: Path) -> None:
    (good := tmp_path / "good.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (bad := tmp_path / "bad.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n{"txt": 3}\n')
    with Client(stack.url, stack.api_key) as client:
        assert client.upload_dataset(good)["records"] == 2
        with pytest.raises(ApiProblem, match="line 3"):
            client.upload_dataset(bad)


def test_requests_need_the_api_key(stack: Running) -> None:
    with Client(stack.url, "seft_wrong") as client, pytest.raises(ApiProblem, match="unauthenticated"):
        list(client.jobs())


def test_killed_programs_are_restarted(stack: Running, folder: Path) -> None:
    victims = [pid for pid in members(folder) if pid != stack.supervisor]
    assert len(victims) >= 5, "Postgres, Valkey, SeaweedFS, API, worker"
    for pid in victims:
        with suppress(ProcessLookupError):  # a child of Postgres ends soon after Postgres
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: is_ready(stack))
    with Client(stack.url, stack.api_key) as client:
        assert list(client.jobs()) == []


@pytest.mark.parametrize("last", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_the_supervisor_and_a_new_stack_has_the_same_data(
    stack: Running, folder: Path, stacks: ExitStack, last: signal.Signals
) -> None:
    os.kill(stack.supervisor, last)
    end = time.monotonic() + 300
    # `members` can miss a process that is closing its files, so the lock is checked too.
    while (left := members(folder)) or not FolderLock(folder).free():
        assert time.monotonic() < end, [Path(f"/proc/{pid}/cmdline").read_text() for pid in left]
        time.sleep(0.05)
    assert background.find(folder) is None
    steps = list[str]()
    again = stacks.enter_context(background.attached(folder, steps.append))
    assert {"starting the supervisor", "waiting for api"} <= set(steps)
    assert (again.url, again.api_key) == (stack.url, stack.api_key)
    with Client(again.url, again.api_key) as client:
        assert list(client.jobs()) == []


def test_a_second_supervisor_is_rejected(stack: Running, folder: Path) -> None:
    result = command("run", "--folder", str(folder))
    assert result.returncode == 2
    assert re.fullmatch(rf".* is in use by process {stack.supervisor}\. `make down` stops it\.\n", result.stderr)


def test_down_waits_until_the_last_process_has_ended(stack: Running, folder: Path, tmp_path: Path) -> None:
    *_, down = operations(folder)
    result = subprocess.run(["sh", "-c", down], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "stopped\n")
    assert "stopping worker ..." in result.stderr.splitlines()
    assert members(folder) == []
    assert command("down", "--folder", str(folder)).stdout == "not running\n"
