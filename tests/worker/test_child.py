"""The real training process: what it has, and what it can reach, when it begins to read a model of the hub."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from huggingface_hub import hf_hub_download

from core.infra import sandbox
from core.settings import Settings
from core.specs import JobSpec
from core.stages import Stage
from seft.checkpoint.facts import Record
from seft.errors import SourceError
from seft.models.hub_files import UNREACHABLE
from seft.models.source import ModelSource, fetch
from tests.faults.faults import mount_small_disk, unmount
from tests.hub import COMMIT, Repo, hub, use_hub
from tests.probe import OUTCOME
from tests.waiting import wait_for
from tests.worker.conftest import variables
from worker import child as child_program
from worker.attempt import TRAINING
from worker.process import Process
from worker.progress import Shares
from worker.protocol import DATA, RESULT, Failed, Finished, Message, NoDiskSpace, Task, decode

PROBE = (
    OUTCOME
    + """
import glob, json, os, socket, subprocess, sys
if "worker.training" in sys.orig_argv:
    job = sys.argv[1]
    found = {
        "network": outcome(lambda: socket.create_connection(("127.0.0.1", PORT))),
        "secret file": outcome(lambda: open("SECRET").read()),
        "the worker": outcome(lambda: open("/proc/%s/environ" % os.getppid()).read()),
        "write the hub": outcome(lambda: open("HUB/models--acme--open/refs/x", "w")),
        "read the hub": outcome(lambda: open("HUB/models--acme--open/snapshots/COMMIT/config.json").read()),
        "another model": outcome(lambda: open("HUB/models--acme--other").read()),
        "setsid": outcome(lambda: subprocess.run(["true"], start_new_session=True)),
        "open": [path for path in map(os.path.realpath, glob.glob("/proc/self/fd/*")) if path.startswith("HUB")],
        "environment": dict(os.environ),
    }
    with open(job + "/found.json", "w") as file:
        json.dump(found, file)
    if STOP:
        os._exit(0)
"""
)
"""A module that Python imports at its start. It looks around at the moment at which training begins."""
FILL = """
import sys
if "worker.training" in sys.orig_argv:
    try:
        with open(sys.argv[1] + "/filler", "wb", buffering=0) as file:
            while file.write(bytes(1 << 12)):
                pass
    except OSError:
        pass
"""
"""A module that fills the disk of the job at that moment."""
FULL_CACHES = {
    "before the download": "shutil.disk_usage = lambda path, usage=shutil.disk_usage: usage(path)._replace(free=0)",
    "during the download": "huggingface_hub.snapshot_download = fail",
}
"""Statements of a module that let the disk of the hub cache be full."""
FULL_CACHE = """
import sys
if "worker.child" in sys.orig_argv:
    import errno, huggingface_hub, shutil
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "/hub/blob")
    STATEMENT
"""


class Child:
    """A training process of one job, and the messages that it has sent."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.messages = folder, list[Message]()
        self.ended = threading.Event()
        self.process = Process(TRAINING, folder, lambda line: self.messages.append(decode(line)), self._exit)

    def _exit(self, _: int) -> None:
        self.ended.set()

    def wait(self) -> None:
        self.ended.wait()


def write_job(folder: Path, texts: list[str], **spec: Any) -> None:
    folder.mkdir(parents=True)
    (folder / DATA).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    body = {"dataset": "file_" + "0" * 26, "sparsity": 0.6, "repair": {"method": "none"}, "dtype": "float32", **spec}
    Task(
        spec=JobSpec.model_validate({**body, "evaluate": {"windows": 2, "tokens": 96}}),
        dataset_sha256="0" * 64,
        resume=None,
        model_roots=[],
        device="cpu",
        threads=1,
        checkpoint_seconds=1000,
        micro_batch=None,
    ).write(folder)


@pytest.fixture
def port(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    away: Event,
    seen: list[tuple[str, str | None]],
) -> Iterator[int]:
    """The port of a hub with a model. A worker that is started with these variables uses it."""
    repo = tmp_path / "repo"
    repo.mkdir()
    for file in tiny_folder.iterdir():
        (repo / file.name).symlink_to(file)
    (repo / "README.md").write_text("---\nlicense: mit\n---\n")
    with hub({"acme/open": Repo(repo)}, {"hf_of_the_operator": "operator"}, seen, away=away) as endpoint:
        for name, value in {
            "HF_ENDPOINT": endpoint,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_TOKEN": "hf_of_the_operator",
            "NO_PROXY": "127.0.0.1",
            "AWS_SECRET_ACCESS_KEY": "hidden",
            "SEFT_S3_SECRET_KEY": "hidden",
        }.items():
            monkeypatch.setenv(name, value)
        yield int(endpoint.rpartition(":")[2])


def probe(tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch, *, stop: bool) -> None:
    """Let every Python of this environment run the probe at its start."""
    (tmp_path / "secret").write_text("hidden")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "models--acme--other").write_text("of another job")
    code = PROBE.replace("PORT", str(port)).replace("SECRET", str(tmp_path / "secret")).replace("STOP", str(stop))
    (modules := tmp_path / "modules").mkdir()
    (modules / "sitecustomize.py").write_text(code.replace("HUB", str(tmp_path / "hub")).replace("COMMIT", COMMIT))
    monkeypatch.setenv("PYTHONPATH", str(modules))


def test_a_training_process_has_no_secret_no_network_and_a_read_only_model(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe(tmp_path, port, monkeypatch, stop=True)
    write_job(tmp_path / "job", ["one"], model="acme/open")
    child = Child(tmp_path / "job")
    child.wait()
    assert (tmp_path / "job" / "found.json").exists(), (child.messages, child.process.tail)
    found = json.loads((tmp_path / "job" / "found.json").read_text())
    assert found["network"] == found["setsid"] == "PermissionError"
    names = set(found["environment"])
    assert not [name for name in names if name.startswith(("SEFT_", "AWS_"))]
    assert "hf_of_the_operator" not in str(found["environment"])
    assert found["environment"]["HOME"] == found["environment"]["TMPDIR"] == str(tmp_path / "job")
    assert found["open"] == [str(tmp_path / "hub" / ".seft-locks" / "models--acme--open")], "the lock is held"
    if sandbox.landlock_abi():
        assert found["read the hub"] == "done"
        refused = ("secret file", "the worker", "write the hub", "another model")
        assert [found[name] for name in refused] == ["PermissionError"] * 4


def test_a_job_with_a_model_of_the_hub_ends_in_the_sandbox_and_imports_torch_once(
    tmp_path: Path, port: int, tiny_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (modules := tmp_path / "modules").mkdir()
    starts = tmp_path / "job" / "starts"
    (modules / "sitecustomize.py").write_text(f"import sys; print(sys.orig_argv[1:], file=open({str(starts)!r}, 'a'))")
    monkeypatch.setenv("PYTHONPATH", str(modules))
    write_job(tmp_path / "job", tiny_texts[:20], model="acme/open", prune={"method": "magnitude"})
    child = Child(tmp_path / "job")
    child.wait()
    assert isinstance(child.messages[-1], Finished), (child.messages[-1:], child.process.tail)
    base = Record.read(tmp_path / "job" / RESULT).facts.base
    assert (base.reference, base.kind, base.revision, base.licence) == ("acme/open", "hub", COMMIT, "mit")
    assert [re.findall(r"worker\.\w+", line) for line in starts.read_text().splitlines()] == [
        ["worker.child"],
        ["worker.training"],
    ]


def test_a_model_whose_weights_are_in_a_shared_folder_of_the_cache_can_be_read(
    tmp_path: Path, port: int, tiny_texts: list[str]
) -> None:
    """Newer clients of the hub store the weights of all models in one folder of the cache."""
    write_job(tmp_path / "first", tiny_texts[:20], model="acme/open", prune={"method": "magnitude"})
    first = Child(tmp_path / "first")
    first.wait()
    cache = Path(os.environ["HF_HUB_CACHE"])
    (link,) = cache.glob("models--acme--open/snapshots/*/model.safetensors")
    shared = cache / "blobs" / "aa" / "weights"
    shared.parent.mkdir(parents=True)
    link.resolve().rename(shared)
    link.unlink()
    link.symlink_to(shared)
    write_job(tmp_path / "second", tiny_texts[:20], model="acme/open", prune={"method": "magnitude"})
    second = Child(tmp_path / "second")
    second.wait()
    assert isinstance(second.messages[-1], Finished), (second.messages[-1:], second.process.tail)


def test_a_disk_that_is_full_when_training_begins_is_no_fault_of_the_model(
    tmp_path: Path, port: int, tiny_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not mount_small_disk(tmp_path / "disk"):
        pytest.skip("mounting a small disk needs root")
    (modules := tmp_path / "modules").mkdir()
    (modules / "sitecustomize.py").write_text(FILL)
    monkeypatch.setenv("PYTHONPATH", str(modules))
    write_job(job := tmp_path / "disk" / "job", tiny_texts[:20], model="acme/open", prune={"method": "magnitude"})
    try:
        child = Child(job)
        child.wait()
        assert isinstance(child.messages[-1], NoDiskSpace), (child.messages[-1:], child.process.tail)
    finally:
        unmount(tmp_path / "disk")


@pytest.mark.usefixtures("port")
@pytest.mark.parametrize("statement", FULL_CACHES.values(), ids=FULL_CACHES)
def test_a_full_disk_of_the_hub_cache_asks_for_no_space_in_the_folder_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    (modules := tmp_path / "modules").mkdir()
    (modules / "sitecustomize.py").write_text(FULL_CACHE.replace("STATEMENT", statement))
    monkeypatch.setenv("PYTHONPATH", str(modules))
    write_job(tmp_path / "job", ["one"], model="acme/open")
    child = Child(tmp_path / "job")
    child.wait()
    last = child.messages[-1]
    assert isinstance(last, NoDiskSpace), (child.messages, child.process.tail)
    assert last.needed == 0, "the cache may be on another disk than the job"
    assert "Free space on the disk of the hub cache" in last.message


def test_a_download_is_reported_while_it_grows_and_no_longer(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(monkeypatch, f"http://127.0.0.1:{port}", tmp_path / "hub")
    monkeypatch.setattr(child_program, "REPORT_SECONDS", 0.01)
    reports: list[float] = []
    during = []

    def slow(source: ModelSource) -> Path:
        file = tmp_path / "hub" / "models--acme--open" / "blobs" / "part.incomplete"
        file.parent.mkdir(parents=True)
        for size in (1, 2):
            before = len(reports)
            (tmp_path / "part").write_bytes(bytes(size))
            (tmp_path / "part").replace(file)
            wait_for(lambda before=before: len(reports) > before)  # type: ignore[misc]
        before = len(reports)
        time.sleep(0.2)
        during.append(len(reports) - before)
        file.write_bytes(bytes(3))
        return fetch(source)

    monkeypatch.setattr(child_program, "fetch", slow)
    write_job(tmp_path / "job", ["one"], model="acme/open")
    with ExitStack() as held:
        fetched = child_program.fetch_model(Task.read(tmp_path / "job"), held, lambda: reports.append(time.monotonic()))
        ended = time.monotonic()
        time.sleep(0.1)
    assert fetched == tmp_path / "hub" / "models--acme--open" / "snapshots" / COMMIT
    assert during == [0], "nothing is reported while the files do not grow"
    assert max(reports) <= ended


def test_a_download_into_the_cache_that_is_interrupted_after_each_file_ends(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(monkeypatch, f"http://127.0.0.1:{port}", tmp_path / "hub")
    names = ["config.json", "model.safetensors", "tokenizer.json"]
    left = names.copy()

    def interrupted(source: ModelSource) -> Path:
        if not left:
            return fetch(source)
        hf_hub_download(source.reference, left.pop(), revision=source.revision)
        raise SourceError(UNREACHABLE, "the connection was cut")

    monkeypatch.setattr(child_program, "fetch", interrupted)
    for name in ("RETRY_SECONDS", "LONG_TRY_SECONDS", "FIRST_PAUSE", "MOST_LONG_TRIES"):
        monkeypatch.setattr(f"worker.retries.{name}", 0.0)
    write_job(tmp_path / "job", ["one"], model="acme/open")
    with ExitStack() as held:
        fetched = child_program.fetch_model(Task.read(tmp_path / "job"), held, lambda: None)
    assert fetched is not None
    assert {*names} <= {path.name for path in fetched.iterdir()}


@pytest.mark.usefixtures("port")
def test_an_absent_model_is_a_user_error_before_anything_else_is_loaded_and_an_outage_is_none(
    tmp_path: Path, away: Event, seen: list[tuple[str, str | None]]
) -> None:
    write_job(tmp_path / "job", ["one"], model="acme/absent")
    away.set()
    child = Child(tmp_path / "job")
    wait_for(lambda: seen)
    away.clear()
    child.wait()
    (failed,) = [message for message in child.messages if isinstance(message, Failed)]
    assert (failed.user_error, failed.code) == (True, "model_not_found")


def test_the_folder_of_the_service_is_not_readable_as_a_whole() -> None:
    granted = sandbox.code({"LD_LIBRARY_PATH": "/opt/cuda/lib64:"}, ("core", "seft", "worker"))
    assert not [path for path in granted if sandbox.ROOT.is_relative_to(path.resolve())]
    assert Path("/opt/cuda/lib64") in granted


def test_the_worker_keeps_other_processes_of_its_user_out_of_its_memory(settings: Settings) -> None:
    code = """
import ctypes
from worker import service
service.serve = lambda *_: ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
print("dumpable:", service.main())
"""
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables(settings)},
        cwd=sandbox.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "dumpable: 0" in process.stdout


def test_a_resumed_job_keeps_its_progress_while_the_program_starts(tmp_path: Path) -> None:
    write_job(tmp_path / "job", [], model="tiny", repair={"steps": 100})
    task = Task.read(tmp_path / "job")
    new, resumed = (child_program.make_loading(task.model_copy(update={"resume": step})) for step in (None, 40))
    assert (new.progress, new.step) == (0.0, 0)
    assert (resumed.progress, resumed.step) == (Shares(task.spec).progress(Stage.TRAINING, 0.4), 40)
