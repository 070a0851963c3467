"""Requests that wait: they cost next to nothing, and their number is limited per key and per network."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import anyio
import pytest
from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI, Request
from httpx2 import ASGITransport, AsyncClient, TimeoutException
from sqlalchemy import event
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from api import readiness, unknown_callers
from api.app import make_app
from api.connections import network_of
from core.access.keys import digest
from core.errors import ProblemError
from core.jobs import attempts
from core.jobs.attempts import Attempt
from core.states import Phase
from tests.api.conftest import NewClient, problem, serving
from tests.waiting import wait_for

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def strict(app: FastAPI) -> Iterator[FastAPI]:
    """The same app, but a key may have two open waits, and a network eight."""
    limited = make_app(app.state.services.settings.model_copy(update={"key_waits": 2}))
    yield limited
    limited.state.services.engine.dispose()


@contextmanager
def counted_statements(app: FastAPI) -> Iterator[list[str]]:
    """Collect the SQL statements that the app executes."""
    statements: list[str] = []

    def record(_: Any, __: Any, statement: str, *more: Any) -> None:
        statements.append(statement)

    event.listen(app.state.services.engine, "before_cursor_execute", record)
    yield statements
    event.remove(app.state.services.engine, "before_cursor_execute", record)


def test_waits_share_one_query_per_second_and_end_with_the_change(
    app: FastAPI, client: TestClient, attempt: Attempt, sessions: sessionmaker[Session]
) -> None:
    path = f"/jobs/{attempt.job_id}"

    async def run(url: str) -> None:
        async with AsyncClient(base_url=url, headers=dict(client.headers), timeout=60) as many:

            async def wait() -> None:
                answers.append((await many.get(path, params={"wait": 60})).json()["step"])

            async def stream() -> None:
                async with many.stream("GET", f"{path}/events", headers=STREAM) as answer:
                    async for line in answer.aiter_lines():
                        if line == "event: phase.began":
                            lines.append(line)
                            return

            async with anyio.create_task_group() as group:
                for _ in range(30):
                    group.start_soon(wait)
                    group.start_soon(stream)
                with anyio.fail_after(20):
                    while sum(map(len, app.state.services.changes._waiters.values())) < 60:
                        await anyio.sleep(0.05)
                with counted_statements(app) as statements:
                    await anyio.sleep(2.5)
                    assert len(statements) <= 3, statements
                with anyio.fail_after(20):
                    while app.state.services.engine.pool.checkedout():
                        await anyio.sleep(0.05)
                with sessions.begin() as session:
                    attempts.set_progress(session, attempt, phase=Phase.TRAINING, progress=0.5, step=7)
                with anyio.fail_after(20):
                    while len(lines) < 30 or len(answers) < 30:
                        await anyio.sleep(0.05)
                group.cancel_scope.cancel()

    answers: list[int] = []
    lines: list[str] = []
    with serving(app, client) as server:
        anyio.run(run, str(server.base_url))
    assert answers == [7] * 30


def test_a_key_has_a_limited_number_of_waits_and_gets_them_back(
    strict: FastAPI, client: TestClient, new_client: NewClient, job_id: str
) -> None:
    path = f"/jobs/{job_id}"
    with serving(strict, client) as server:
        with ExitStack() as open_streams:
            for _ in range(2):
                answer = open_streams.enter_context(server.stream("GET", f"{path}/events", headers=STREAM))
                assert answer.status_code == 200
            for refused in (server.get(path, params={"wait": 60}), server.get(f"{path}/events", headers=STREAM)):
                report = problem(refused, 429, "rate_limited")
                assert "per key: at most 2 at the same time" in report["detail"]
                assert int(refused.headers["retry-after"]) > 0
            assert server.get(path).status_code == 200
            assert server.get(f"{path}/events").status_code == 200
            other = dict(new_client("ours").headers)
            assert server.get(path, params={"wait": 1}, headers=other).status_code == 200
        wait_for(lambda: server.get(path, params={"wait": 1}).status_code == 200)


def test_a_wait_ends_when_its_client_leaves(strict: FastAPI, client: TestClient, job_id: str) -> None:
    with serving(strict, client) as server:
        for _ in range(2):
            with pytest.raises(TimeoutException):
                server.get(f"/jobs/{job_id}", params={"wait": 60}, timeout=0.5)
        wait_for(lambda: server.get(f"/jobs/{job_id}", params={"wait": 1}).status_code == 200)


def test_a_network_has_a_limited_number_of_waits_whatever_its_keys(
    strict: FastAPI, client: TestClient, new_client: NewClient, job_id: str
) -> None:
    with serving(strict, client) as server, ExitStack() as open_streams:
        for _ in range(4):
            headers = {"Authorization": new_client("ours").headers["Authorization"], **STREAM}
            for _ in range(2):
                open_streams.enter_context(server.stream("GET", f"/jobs/{job_id}/events", headers=headers))
        with counted_statements(strict) as statements:
            for key in (client.headers["Authorization"], "Bearer seft_wrong"):
                refused = server.get(f"/jobs/{job_id}", params={"wait": 1}, headers={"Authorization": key})
                assert "per network address" in problem(refused, 429, "rate_limited")["detail"]
        assert not [statement for statement in statements if "api_keys" in statement]


def test_unknown_keys_are_refused_before_the_database_is_asked(
    app: FastAPI, client: TestClient, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unknown_callers, "FAILURES", 3)
    monkeypatch.setattr(unknown_callers, "SECONDS_PER_FAILURE", 100.0)
    assert client.get("/jobs").status_code == 200
    wrong = {"Authorization": "Bearer seft_wrong"}
    for _ in range(3):
        problem(client.get("/jobs", headers=wrong), 401, "unauthenticated")
    newcomer = new_client("ours")
    with counted_statements(app) as statements:
        refused = client.get("/jobs", headers=wrong)
        problem(refused, 429, "rate_limited")
        assert refused.headers["retry-after"]
        assert client.get("/dashboard/", headers={"Cookie": "seft_session=wrong"}).status_code == 429
        assert client.post("/dashboard/sign-in", data={"key": "seft_wrong"}).status_code == 429
        problem(newcomer.get("/jobs"), 429, "rate_limited")
    assert statements == []
    assert client.get("/jobs").status_code == 200
    monkeypatch.setattr(unknown_callers, "FAILURES", 4)
    assert newcomer.get("/jobs").status_code == 200


def test_many_unknown_keys_at_once_are_not_all_looked_up(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unknown_callers, "FAILURES", 1)
    monkeypatch.setattr(unknown_callers, "SECONDS_PER_FAILURE", 100.0)
    statuses = Counter[int]()

    async def ask(many: AsyncClient, number: int) -> None:
        answer = await many.get("/jobs", headers={"Authorization": f"Bearer seft_{number}"})
        statuses[answer.status_code] += 1

    async def run() -> None:
        async with (
            AsyncClient(transport=ASGITransport(app), base_url="http://seft.example") as http,
            anyio.create_task_group() as group,
        ):
            for number in range(200):
                group.start_soon(ask, http, number)

    anyio.run(run)
    assert 0 < statuses[401] < 100, "each thread looks up one key"
    assert statuses.total() == statuses[401] + statuses[429] == 200


def test_a_key_that_was_revoked_is_limited_like_an_unknown_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unknown_callers, "FAILURES", 3)
    monkeypatch.setattr(unknown_callers, "SECONDS_PER_FAILURE", 100.0)
    callers = unknown_callers.UnknownCallers(limited=True)
    callers.record("192.0.2.7", "seft_key", valid=True)
    for _ in range(3):
        callers.require_below_limit("192.0.2.7", "seft_key")
        callers.record("192.0.2.7", "seft_key", valid=False)
    with pytest.raises(ProblemError, match="too many requests with unknown API keys"):
        callers.require_below_limit("192.0.2.7", "seft_key")


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:bbbb::9", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("testclient", "unknown"),
        ("x" * 60_000, "unknown"),
    ],
)
def test_an_ipv6_network_counts_as_one_address(host: str, network: str) -> None:
    assert network_of(Request({"type": "http", "client": (host, 1), "headers": []})) == network


def test_many_requests_for_readiness_share_one_run_of_the_checks(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "VALID_SECONDS", 3600)
    statuses = []

    async def ask(many: AsyncClient) -> None:
        statuses.append((await many.get("/readyz")).status_code)

    async def run() -> None:
        async with (
            AsyncClient(transport=ASGITransport(app), base_url="http://seft.example") as http,
            anyio.create_task_group() as group,
        ):
            for _ in range(500):
                group.start_soon(ask, http)

    with counted_statements(app) as statements:
        anyio.run(run)
    assert statuses == [200] * 500
    assert len(statements) == 1


def test_only_the_latest_keys_and_networks_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unknown_callers, "REMEMBERED", 2)
    callers = unknown_callers.UnknownCallers(limited=True)
    for name in ("a", "b", "a", "c"):
        callers.record(name, name, valid=False)
        callers.record("network", name, valid=True)
    assert list(callers._arrivals) == ["a", "c"]
    assert list(callers._known) == [digest("a"), digest("c")]


@contextmanager
def busy_threads(client: TestClient) -> Iterator[None]:
    """Occupy every thread of the server."""

    async def occupy() -> None:
        threads = current_default_thread_limiter()
        for _ in range(int(threads.total_tokens)):
            threads.acquire_on_behalf_of_nowait(object())

    async def free() -> None:
        threads = current_default_thread_limiter()
        for borrower in threads.statistics().borrowers:
            threads.release_on_behalf_of(borrower)

    assert client.portal is not None
    client.portal.call(occupy)
    try:
        yield
    finally:
        client.portal.call(free)


def test_readiness_is_reported_while_every_thread_is_busy(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that waited for a thread would fail at its timeout."""
    monkeypatch.setattr(readiness, "CHECK_SECONDS", 20.0)
    with busy_threads(client):
        answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")


def test_a_refused_request_needs_no_thread(
    app: FastAPI, client: TestClient, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unknown_callers, "FAILURES", 0)
    monkeypatch.setattr(unknown_callers, "SECONDS_PER_FAILURE", 100.0)
    wrong = {"Authorization": "Bearer seft_wrong"}
    problem(client.get("/jobs", headers=wrong), 401, "unauthenticated")
    waits = app.state.services.key_waits
    monkeypatch.setattr(waits, "_most", 1)
    with busy_threads(client), waits.hold(digest(client.headers["Authorization"].split()[1])):
        problem(client.get("/jobs", headers=wrong), 429, "rate_limited")
        assert client.get("/dashboard/", headers={"Cookie": "seft_session=wrong"}).status_code == 429
        problem(client.get("/jobs", headers={"Authorization": ""}), 401, "unauthenticated")
        assert "per key" in problem(client.get(f"/jobs/{job_id}?wait=60"), 429, "rate_limited")["detail"]
