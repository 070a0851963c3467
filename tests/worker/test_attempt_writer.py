"""Which errors of the database are waited for, and what a slow database delays."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from core.errors import LeaseLostError
from core.jobs import attempts
from core.jobs.attempts import PendingActions
from core.states import Phase
from tests.worker.conftest import Backend, supervisor
from worker.attempt_writer import FLUSH_SECONDS, AttemptWriter
from worker.protocol import Measured, Progressed


def test_a_transaction_that_the_server_ended_is_tried_again(backend: Backend, job_id: str) -> None:
    writer, pauses = AttemptWriter(backend.sessions, backend.claim(), backend.settings), [0.5, 0.0]

    def change(session: Session) -> str:
        session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '100ms'"))
        time.sleep(pauses.pop(0))
        return str(session.scalars(text("SELECT 'done'")).one())

    assert writer.write(change) == "done"
    assert not pauses


def test_a_wrong_statement_is_not_tried_again(backend: Backend, job_id: str) -> None:
    writer = AttemptWriter(backend.sessions, backend.claim(), backend.settings)
    with pytest.raises(ProgrammingError) as caught:
        writer.write(lambda session: session.execute(text("SELECT nothing")))
    assert isinstance(caught.value, DBAPIError)


def test_reports_are_collected_between_two_slow_writes(
    backend: Backend, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, written, add = 0.0, list[int](), attempts.add_metrics

    def slow(session: Session, attempt: Any, metrics: Any) -> None:
        nonlocal now
        now += 3 * FLUSH_SECONDS
        written.append(len(metrics))
        add(session, attempt, metrics)

    monkeypatch.setattr(attempts, "add_metrics", slow)
    monkeypatch.setattr("worker.attempt_writer.time", SimpleNamespace(monotonic=lambda: now))
    settings = backend.settings.model_copy(update={"heartbeat_seconds": 1e6})
    writer = AttemptWriter(backend.sessions, backend.claim(), settings)
    for step in range(25):
        writer.add(Measured(step=step, values={"loss": 1.0}))
        now += FLUSH_SECONDS / 8
        writer.tick()
    assert written == [8, 8, 8]
    assert len(backend.metrics(job_id)) == 24


def test_the_lease_and_the_run_time_count_from_the_start_of_a_slow_renewal(
    backend: Backend, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, started, ran = 0.0, list[float](), list[float]()
    settings = backend.settings

    def slow(session: Session, attempt: Any, lease_seconds: float, seconds: float) -> PendingActions:
        nonlocal now
        started.append(now)
        ran.append(seconds)
        now += lease_seconds + 1
        return PendingActions(pausing=False, stop_step=None)

    def fail(session: Session) -> None:
        raise OperationalError("SELECT 1", None, Exception("the server does not answer"))

    monkeypatch.setattr(attempts, "heartbeat", slow)
    monkeypatch.setattr("worker.attempt_writer.time", SimpleNamespace(monotonic=lambda: now, sleep=pytest.fail))
    writer = AttemptWriter(backend.sessions, backend.claim(), settings)
    for _ in range(3):
        now += settings.heartbeat_seconds
        writer.tick()
    assert sum(ran) == pytest.approx(started[-1])
    with pytest.raises(LeaseLostError):
        writer.write(fail)


def test_a_phase_that_is_shorter_than_the_time_between_two_writes_has_an_event(backend: Backend, job_id: str) -> None:
    writer = AttemptWriter(backend.sessions, backend.claim(), backend.settings)
    for progress, phase in enumerate((Phase.LOADING, Phase.PRUNING, Phase.PRUNING)):
        writer.add(Progressed(phase=phase, progress=progress / 10, step=0))
    writer.flush()
    began = [event.data["phase"] for event in backend.event_rows(job_id) if event.type == "phase.began"]
    assert began == [Phase.LOADING, Phase.PRUNING]
    assert backend.job(job_id).progress == 0.2


def test_messages_that_wait_are_handled_before_the_next_write(
    backend: Backend, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.attempt.TICK_SECONDS", 1e6)
    running, handled = supervisor(backend, "succeed"), list[int]()
    for number in range(10):
        running.mailbox.put(lambda number=number: handled.append(number))  # type: ignore[misc]
    running._step()
    assert handled == list(range(10))


def test_nothing_is_handled_after_the_end(backend: Backend, job_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.attempt.TICK_SECONDS", 1e6)
    running, handled = supervisor(backend, "succeed"), list[int]()
    running.mailbox.put(lambda: running._end("attempt.released"))
    running.mailbox.put(lambda: handled.append(1))
    running._step()
    assert not handled
