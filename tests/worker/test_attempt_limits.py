"""An attempt whose training process hangs, reads for too long, or runs for longer than its job may."""

import time
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from core.infra.storage import Storage
from core.states import Status
from core.tables import Job
from tests.waiting import wait_for
from tests.worker.conftest import Backend, Running, supervisor
from tests.worker.stand_in import SAVED_BYTES
from worker import lifecycle, watchdog
from worker.protocol import Message, Progressed
from worker.watchdog import Overdue, Watchdog


class Clock:
    """The clock of the watchdog. A test can let time pass at once, as if the worker looked for messages meanwhile."""

    def __init__(self) -> None:
        self._skipped = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self._skipped

    def skip(self, seconds: float) -> None:
        self._skipped += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(watchdog, "time", clock := Clock())
    monkeypatch.setattr(watchdog, "LOOK_SECONDS", inf)
    return clock


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Overdue | None]:
    """The results of the checks of the watchdog so far."""

    def check(self: Watchdog) -> Overdue | None:
        found.append(result := overdue(self))
        return result

    found = list[Overdue | None]()
    overdue: Callable[[Watchdog], Overdue | None] = Watchdog.overdue.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(Watchdog, "overdue", property(check))
    return found


def wait_for_check(checks: list[Overdue | None]) -> None:
    """Wait until a check has begun and ended. After a check that found something, there are no more checks."""
    before = len(checks)
    wait_for(lambda: len(checks) > before + 1 or any(checks))


def test_a_silent_process_is_ended(backend: Backend, job_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Running(supervisor(backend, "hang_with_child")):
        wait_for(lambda: backend.job(job_id).progress == 0.5)
        # Earlier, a slow process might not yet write its stack when it is asked for it.
        monkeypatch.setattr("worker.watchdog.SILENT_SECONDS", 0.1)
        wait_for(lambda: backend.job(job_id).status == Status.QUEUED)
    assert (backend.job(job_id).status, backend.job(job_id).failures) == (Status.QUEUED, 1)
    (event,) = [event for event in backend.event_rows(job_id) if event.type == "attempt.hung"]
    assert "in hang_with_child" in event.data["output"], "the stack of the process that hangs"
    assert "sent no message for" in event.data["message"]


def test_a_process_is_not_ended_while_its_state_is_uploaded(
    backend: Backend, job_id: str, clock: Clock, checks: list[Overdue | None]
) -> None:
    class Slow(Storage):
        """Sends a file a piece at a time, for longer than a process may be silent."""

        def upload(self, source: Path | BinaryIO, key: str, sent: Callable[[int], None] | None = None) -> None:
            assert sent is not None
            for _ in range(5):
                clock.skip(watchdog.SILENT_SECONDS / 2)
                wait_for_check(checks)
                sent(1)
            super().upload(source, key, sent)

    with Running(supervisor(replace(backend, storage=Slow(backend.settings)), "save_and_wait")):
        wait_for(lambda: backend.job(job_id).resume)
    assert set(checks) == {None}
    assert "attempt.hung" not in backend.events(job_id)


def test_a_process_may_write_a_large_state_for_longer_than_a_step_but_not_without_end(
    backend: Backend, job_id: str, clock: Clock, checks: list[Overdue | None]
) -> None:
    with Running(supervisor(backend, "hang_while_saving")):
        wait_for(lambda: backend.job(job_id).scores)
        clock.skip(SAVED_BYTES / watchdog.STATE_BYTES_PER_SECOND)
        wait_for_check(checks)
        assert set(checks) == {None}
        clock.skip(watchdog.SILENT_SECONDS)
        wait_for(lambda: backend.job(job_id).status == Status.QUEUED)
    (event,) = [event for event in backend.event_rows(job_id) if event.type == "attempt.hung"]
    assert "in hang_while_saving" in event.data["output"]


def test_training_without_new_steps_is_ended(backend: Backend, job_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.watchdog.STEP_SECONDS", 1.0)
    supervisor(backend, "get_stuck").run()
    assert (backend.job(job_id).status, backend.job(job_id).failures) == (Status.QUEUED, 1)
    assert "job.retried" in backend.events(job_id)
    (event,) = [event for event in backend.event_rows(job_id) if event.type == "attempt.hung"]
    assert "No progress in training for" in event.data["message"]


def test_an_evaluation_between_two_steps_may_take_much_longer_than_a_step(
    backend: Backend, job_id: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its reports comes shortly before the process would count as hanging."""

    def record_late(self: Watchdog, message: Message) -> None:
        if isinstance(message, Progressed) and message.progress == 0.2:
            evaluation.append(message)
            clock.skip(0.9 * watchdog.STEP_SECONDS)
        record(self, message)

    evaluation, record = list[Message](), Watchdog.record
    monkeypatch.setattr(Watchdog, "record", record_late)
    monkeypatch.setattr("worker.lifecycle.STACK_SECONDS", 0.0)
    supervisor(backend, "evaluate_between_steps").run()
    assert len(evaluation) == 20
    assert backend.job(job_id).status == Status.SUCCEEDED


def test_a_process_that_goes_on_after_a_hang_was_reported_is_not_ended(
    backend: Backend, job_id: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record_late(self: Watchdog, message: Message) -> None:
        messages.append(message)
        if len(messages) == 12:
            reported.append(running.lifecycle.stacks_by)
            clock.skip(lifecycle.STACK_SECONDS + 1)
        record(self, message)
        if len(messages) == 11:
            clock.skip(watchdog.STEP_SECONDS + 1)

    messages, reported, record = list[Message](), list[float](), Watchdog.record
    monkeypatch.setattr(Watchdog, "record", record_late)
    monkeypatch.setattr(lifecycle, "time", clock)
    monkeypatch.setattr(lifecycle, "STACK_SECONDS", 1e5)
    monkeypatch.setattr("worker.attempt.TICK_SECONDS", 0.0)  # the worker checks for a hang between two messages
    running = supervisor(backend, "evaluate_between_steps")
    running.run()
    assert reported[0] < inf
    assert (backend.job(job_id).status, backend.events(job_id).count("attempt.hung")) == (Status.SUCCEEDED, 0)


def test_a_process_is_not_ended_because_the_worker_did_not_run(
    backend: Backend, job_id: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record_and_stop(self: Watchdog, message: Message) -> None:
        record(self, message)
        clock.skip(10 * watchdog.STEP_SECONDS)

    record = Watchdog.record
    monkeypatch.setattr(Watchdog, "record", record_and_stop)
    monkeypatch.setattr(watchdog, "LOOK_SECONDS", 10.0)
    monkeypatch.setattr("worker.lifecycle.STACK_SECONDS", 0.0)
    supervisor(backend, "evaluate_between_steps").run()
    assert (backend.job(job_id).status, backend.events(job_id).count("attempt.hung")) == (Status.SUCCEEDED, 0)


def test_the_time_of_downloads_is_not_counted_as_silence_of_the_process(backend: Backend, job_id: str) -> None:
    class Slow(Storage):
        """Downloads a file in what seems to be hours."""

        def download(self, key: str, path: Path) -> None:
            super().download(key, path)
            running.watchdog._last_message -= 10_000

    running = supervisor(replace(backend, storage=Slow(backend.settings)), "succeed")
    running.run()
    assert backend.job(job_id).status == Status.SUCCEEDED
    assert "attempt.hung" not in backend.events(job_id)


def test_a_nul_in_a_report_ends_in_the_error_and_not_in_a_lost_lease(backend: Backend, job_id: str) -> None:
    assert supervisor(backend, "report_texts_with_nul").run(), "the worker is healthy"
    job, mark = backend.job(job_id), "\N{REPLACEMENT CHARACTER}"
    assert job.error == {"fault": "user_error", "code": f"a{mark}", "message": f"b{mark}"}
    assert (job.status, job.attempt, job.scores) == (Status.FAILED, 1, {f"a{mark}": 1.0})


def test_a_tokenizer_that_does_not_end_is_an_error_of_the_user_and_not_retried(
    backend: Backend, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.watchdog.RECORD_SECONDS", 1.0)
    assert supervisor(backend, "read_forever").run(), "the worker is healthy"
    job = backend.job(job_id)
    assert job.error is not None
    assert (job.status, job.attempt) == (Status.FAILED, 1)
    assert (job.error["fault"], job.error["code"]) == ("user_error", "reading_hung")
    assert "after record 7" in job.error["message"]
    (event,) = [event for event in backend.event_rows(job_id) if event.type == "attempt.hung"]
    assert "in read_forever" in event.data["output"], "the stack of the process that hangs"


def test_a_job_runs_no_longer_than_its_limit_over_all_attempts(backend: Backend) -> None:
    job_id = backend.add_job(backend.add_dataset(["one " * 1024, "two"]), max_seconds=100)
    with backend.sessions.begin() as session:
        session.get_one(Job, job_id).run_seconds = 99.9
    assert supervisor(backend, "hang_with_child").run(), "the worker is healthy"
    job = backend.job(job_id)
    assert job.error is not None
    assert (job.status, job.attempt, job.error["code"]) == (Status.FAILED, 1, "run_time_exceeded")
    assert 100 < job.run_seconds < 110


def test_the_upload_of_a_result_is_not_interrupted_by_the_limit_of_the_run_time(backend: Backend) -> None:
    class Slow(Storage):
        """Needs hours for the first file of the result."""

        def upload(self, source: Path | BinaryIO, key: str, sent: Callable[[int], None] | None = None) -> None:
            if "/result/" in key and not late:
                late.append(key)
                with backend.sessions.begin() as session:
                    session.get_one(Job, job_id).run_seconds = 9999.0
                wait_for(lambda: running.writer.requests.run_seconds > 9999)
                backend.wait_for_renewals(job_id)
            super().upload(source, key, sent)

    late = list[str]()
    job_id = backend.add_job(backend.add_dataset(["one " * 1024, "two"]), max_seconds=3600)
    running = supervisor(replace(backend, storage=Slow(backend.settings)), "succeed")
    running.run()
    assert late
    assert (backend.job(job_id).status, backend.job(job_id).error) == (Status.SUCCEEDED, None)


@pytest.mark.parametrize("limits", [{"job_seconds": 1}, {"tenant_job_seconds": {"default": 1}}])
def test_the_operator_limits_the_run_time(backend: Backend, job_id: str, limits: dict[str, Any]) -> None:
    strict = replace(backend, settings=backend.settings.model_copy(update=limits))
    supervisor(strict, "hang_with_child").run()
    assert (backend.job(job_id).error or {}).get("code") == "run_time_exceeded"
