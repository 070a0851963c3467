"""Several API processes serve one address, are replaced if killed, and end with their supervisor."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from core.access import keys
from core.access.keys import Scope
from core.infra.database import one_session
from core.settings import Settings
from local.processes import children_of
from local.servers import Servers
from local.stack import Api
from tests.api.conftest import Json
from tests.hollow import TEXTS, write_hollow
from tests.waiting import alive, wait_for
from tests.worker.conftest import variables

Call = httpx2.Response


@pytest.fixture
def api(servers: Servers, settings: Settings, tmp_path: Path) -> Iterator[Api]:
    """Two processes and their supervisor."""
    roots = json.dumps([str(write_hollow(tmp_path / "models" / "tiny").parent)])
    more = {"SEFT_API_PROCESSES": "2", "SEFT_MODEL_ROOTS": roots}
    started = Api(servers.lock, {**os.environ, **variables(settings), **more})
    before = starts(started)
    started.start()
    wait_for(lambda: starts(started) == before + 2)
    yield started
    started.stop()


@pytest.fixture
def key(settings: Settings) -> str:
    return issue(settings, Scope.ADMIN)


@pytest.fixture
def metrics_key(settings: Settings) -> str:
    return issue(settings, Scope.METRICS)


def issue(settings: Settings, scope: Scope) -> str:
    with one_session(settings) as session:
        _, secret = keys.issue(session, "ours", "test", scope)
    return secret


def serving(api: Api) -> list[int]:
    """Return the ids of the serving processes. The supervisor has one more, for shared resources."""
    assert api.process is not None
    return [pid for pid in children_of(api.process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def starts(api: Api) -> int:
    """Return how many processes have started to serve."""
    return api.log.read_text().count("Application startup complete") if api.log.exists() else 0


@contextmanager
def alone(api: Api, pid: int) -> Iterator[None]:
    """Suspend all other processes, so that this one serves every request."""
    others = [each for each in serving(api) if each != pid]
    for each in others:
        os.kill(each, signal.SIGSTOP)
    try:
        yield
    finally:
        for each in others:
            os.kill(each, signal.SIGCONT)


def test_processes_share_the_work_are_replaced_and_end_with_their_supervisor(
    api: Api, key: str, metrics_key: str
) -> None:
    check_shared(api, key, metrics_key)
    check_replaced(api)
    check_ended(api, signal.SIGTERM)


def test_no_process_is_left_when_the_supervisor_is_killed(api: Api) -> None:
    check_ended(api, signal.SIGKILL)


def check_shared(api: Api, key: str, metrics_key: str) -> None:
    """Each process serves, and sees what the others did."""

    def send(method: str, path: str, secret: str = key, **more: object) -> Call:
        headers = {"Authorization": f"Bearer {secret}", "Idempotency-Key": "once"}
        answer = httpx2.request(method, f"{api.url}{path}", headers=headers, timeout=30, **more)  # type: ignore[arg-type]
        assert answer.status_code < 400, answer.text
        return answer

    upload = {"file": ("texts.jsonl", TEXTS)}
    body: Json = {"model": "tiny", "dataset": send("POST", "/datasets", files=upload).json()["id"], "sparsity": 0.6}
    job_ids, lines = set(), set()
    for pid in serving(api):
        with alone(api, pid):
            job_ids.add(send("POST", "/jobs", json=body).json()["id"])
            lines |= {
                line for line in send("GET", "/metrics", metrics_key).text.splitlines() if 'status="queued"' in line
            }
    assert len(job_ids) == 1
    assert lines == {'seft_jobs{status="queued"} 1.0'}


def check_replaced(api: Api) -> None:
    """A process that was killed is replaced."""
    (first, second), before = serving(api), starts(api)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: starts(api) == before + 1)
    (new,) = set(serving(api)) - {second}
    with alone(api, new):
        assert httpx2.get(f"{api.url}/livez", timeout=30).status_code == 200


def check_ended(api: Api, end: signal.Signals) -> None:
    """No process is left when this signal ends the supervisor."""
    assert api.process is not None
    all_of_them = children_of(api.process.pid)
    assert len(all_of_them) >= 2
    api.process.send_signal(end)
    api.process.wait(30)
    wait_for(lambda: not any(map(alive, all_of_them)))
