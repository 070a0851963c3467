"""Compare jobs with a model of them under random actions of workers, sweep and user, in any order and concurrent."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from dataclasses import replace as copy
from itertools import permutations

from hypothesis import HealthCheck, strategies
from hypothesis import settings as limits
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from core.errors import LeaseLostError, ProblemError
from core.jobs import actions, attempts, jobs, recovery
from core.jobs.attempts import Attempt, Fault
from core.specs import JobSpec
from core.states import Phase, Reason, Status, Transition
from core.tables import Base, Job, JobEvent
from tests import claims
from tests.core.conftest import Sessions
from tests.core.jobs.test_attempts import expire

MAX_FAILURES = 3
ACTIONS = ("cancel", "pause", "resume", "start", "stop")
WORKER_CALLS = ("report", "save", "publish", "retry", "user", "release")
TRANSITION_EVENTS = select(JobEvent.job_id, JobEvent.type).where(JobEvent.type.startswith("job.")).order_by(JobEvent.id)
"""Without events such as `phase.began`, which report no transition."""


@dataclass
class ModelJob:
    """Expected state of a job. Its methods are the calls; False means rejected without a change."""

    status: Status = Status.QUEUED
    attempt: int = 0
    failures: int = 0
    pausing: bool = False
    stopping: bool = False
    saved: bool = False
    reason: Reason | None = None
    events: list[str] = field(default_factory=lambda: ["job.created"])

    def apply(self, change: Transition, status: Status | None = None, reason: Reason | None = None) -> bool:
        self.events.append(f"job.{change}")
        if status is not None:
            self.status, self.reason = status, reason
            self.pausing = self.pausing and status is not Status.PAUSED and not status.final
        return True

    def hold(self, reason: Reason) -> bool:
        return self.apply(Transition.PAUSED, Status.PAUSED, reason)

    def requeue(self, change: Transition) -> bool:
        self.apply(change, Status.QUEUED)
        return self.hold(Reason.ASKED) if self.pausing else True

    def count_failure(self, change: Transition) -> bool:
        self.failures += 1
        return self.requeue(change) if self.failures < MAX_FAILURES else self.apply(Transition.FAILED, Status.FAILED)

    def cancel(self) -> bool:
        if self.status.final:
            return self.status is Status.CANCELLED
        return self.apply(Transition.CANCELLED, Status.CANCELLED)

    def pause(self) -> bool:
        if self.status is Status.QUEUED:
            return self.hold(Reason.ASKED)
        if self.status is Status.RUNNING and not self.pausing:
            self.pausing = True
            return self.apply(Transition.PAUSING)
        return not self.status.final

    def resume(self) -> bool:
        if self.status is Status.PAUSED:
            return self.apply(Transition.RESUMED, Status.QUEUED)
        if self.pausing:
            self.pausing = False
            return self.apply(Transition.UNPAUSED)
        return not self.status.final

    def start(self) -> bool:
        if self.reason is Reason.NOT_STARTED:
            return self.apply(Transition.STARTED, Status.QUEUED)
        return self.status in {Status.QUEUED, Status.RUNNING}

    def stop(self) -> bool:
        if self.stopping or self.status is Status.CANCELLED:
            return self.status.final or self.resume()
        if self.status.final:
            return False
        if self.status is not Status.RUNNING and not self.saved:
            return self.apply(Transition.CANCELLED, Status.CANCELLED)
        self.stopping, self.pausing = True, False
        self.apply(Transition.STOPPING)
        return self.apply(Transition.RESUMED, Status.QUEUED) if self.status is Status.PAUSED else True

    def work(self, call: str, number: int) -> bool:
        """Apply a call of an attempt, if it is the running one."""
        if (self.status, self.attempt) != (Status.RUNNING, number):
            return False
        match call:
            case "save":
                self.failures, self.saved = self.failures if self.saved else 0, True
            case "publish":
                self.apply(Transition.SUCCEEDED, Status.SUCCEEDED)
            case "retry":
                self.count_failure(Transition.RETRIED)
            case "user":
                self.failures += 1
                self.apply(Transition.FAILED, Status.FAILED)
            case "release":
                self.requeue(Transition.RELEASED)
        return True


def work(session: Session, attempt: Attempt, call: str) -> None:
    match call:
        case "report":
            attempts.heartbeat(session, attempt, 60, 0.0)
            attempts.set_progress(session, attempt, phase=Phase.TRAINING, progress=0.5, step=attempt.number)
        case "save":
            attempts.save_resume(session, attempt, {"step": 0, "files": []})
        case "publish":
            attempts.publish(session, attempt, step=1, prefix="p", sha256="0", files=[], scores={}, measured={})
        case "retry":
            fail(session, attempt, Fault.SYSTEM, retry=True)
        case "user":
            fail(session, attempt, Fault.USER, retry=False)
        case "release":
            attempts.release(session, attempt)


def fail(session: Session, attempt: Attempt, fault: Fault, *, retry: bool) -> None:
    attempts.fail(session, attempt, fault=fault, code="c", message="m", retry=retry, max_failures=MAX_FAILURES)


class JobLife(RuleBasedStateMachine):
    """Ended attempts stay in their bundle: they are workers that return after they lost their job."""

    job_ids = Bundle("job_ids")
    claimed = Bundle("claimed")

    def __init__(self, sessions: Sessions, spec: JobSpec) -> None:
        super().__init__()
        self.sessions, self.spec = sessions, spec
        self.expected: dict[str, ModelJob] = {}
        with sessions.begin() as session:
            keys = [key for table in reversed(Base.metadata.sorted_tables) for key in table.foreign_keys]
            for table in [*(key.parent.table for key in keys if key.references(Job.__table__)), Job.__table__]:
                session.execute(delete(table))

    def call_action(self, job_id: str, action: str) -> bool:
        """Call it in a connection of its own. Returns whether it was accepted."""
        try:
            with self.sessions.begin() as session:
                getattr(actions, action)(session, "ours", job_id)
        except ProblemError:
            return False
        return True

    def call_worker(self, attempt: Attempt, call: str) -> bool:
        try:
            with self.sessions.begin() as session:
                work(session, attempt, call)
        except LeaseLostError:
            return False
        return True

    @rule(target=job_ids, priority=strategies.integers(-1, 1), auto_start=strategies.sampled_from([True, True, False]))
    def create(self, priority: int, auto_start: bool) -> str:
        request = self.spec.model_copy(update={"priority": priority, "auto_start": auto_start})
        with self.sessions.begin() as session:
            job = jobs.create(session, "ours", request, None, "")
        self.expected[job.id] = ModelJob()
        if not auto_start:
            self.expected[job.id].hold(Reason.NOT_STARTED)
        return job.id

    @rule(target=claimed)
    def claim(self) -> Attempt | None:
        with self.sessions.begin() as session:
            attempt = claims.claim(session, "worker", 60)
        waiting = [job for job in self.expected.values() if job.status is Status.QUEUED]
        assert (attempt is None) == (not waiting)
        if attempt is not None:
            job = self.expected[attempt.job_id]
            assert job.status is Status.QUEUED
            job.attempt += 1
            assert (attempt.number, attempt.stop_step is not None) == (job.attempt, job.stopping)
            job.apply(Transition.CLAIMED, Status.RUNNING)
        return attempt

    @rule(attempt=claimed, call=strategies.sampled_from(WORKER_CALLS))
    def worker_call(self, attempt: Attempt | None, call: str) -> None:
        if attempt is not None:
            assert self.call_worker(attempt, call) == self.expected[attempt.job_id].work(call, attempt.number)

    @rule(job_id=job_ids, action=strategies.sampled_from(ACTIONS))
    def user_action(self, job_id: str, action: str) -> None:
        assert self.call_action(job_id, action) == getattr(self.expected[job_id], action)()

    @rule(
        attempt=claimed,
        call=strategies.sampled_from(WORKER_CALLS),
        names=strategies.lists(strategies.sampled_from(ACTIONS), min_size=1, max_size=2),
    )
    def concurrently(self, attempt: Attempt | None, call: str, names: list[str]) -> None:
        """Concurrent calls have the effect of some sequential order."""
        if attempt is None:
            return
        job_id, number = attempt.job_id, attempt.number
        calls: list[tuple[Callable[[], bool], Callable[[ModelJob], bool]]] = [
            (lambda: self.call_worker(attempt, call), lambda job: job.work(call, number)),
            *(
                (
                    lambda action=action: self.call_action(job_id, action),
                    lambda job, action=action: getattr(job, action)(),
                )
                for action in names
            ),
        ]
        start = threading.Barrier(len(calls))

        def act(real: Callable[[], bool]) -> bool:
            start.wait()
            return real()

        with ThreadPoolExecutor(len(calls)) as pool:
            results = list(pool.map(act, [real for real, _ in calls]))
        self.expected[job_id] = self.serialize(job_id, [model for _, model in calls], results)

    def serialize(self, job_id: str, models: list[Callable[[ModelJob], bool]], results: list[bool]) -> ModelJob:
        """Return the model after an order of the calls that gives these results and events."""
        with self.sessions.begin() as session:
            events = list(
                session.scalars(TRANSITION_EVENTS.with_only_columns(JobEvent.type).where(JobEvent.job_id == job_id))
            )
        for order in permutations(range(len(models))):
            job = copy(self.expected[job_id], events=list(self.expected[job_id].events))
            answers = {number: models[number](job) for number in order}
            if [answers[number] for number in range(len(models))] == results and job.events == events:
                return job
        raise AssertionError(f"no order of the calls explains {results} and {events}")

    @rule(job_id=job_ids)
    def lease_expires(self, job_id: str) -> None:
        expire(self.sessions, job_id)
        with self.sessions.begin() as session:
            requeued = recovery.requeue_lost(session, MAX_FAILURES)
        job = self.expected[job_id]
        assert requeued == ([job_id] if job.status is Status.RUNNING else [])
        if requeued:
            job.count_failure(Transition.LOST)

    @invariant()
    def rows_equal_models(self) -> None:
        with self.sessions.begin() as session:
            rows = {row.id: row for row in session.scalars(select(Job))}
            events = session.execute(TRANSITION_EVENTS).all()
        assert rows.keys() == self.expected.keys()
        for job_id, job in self.expected.items():
            row = rows[job_id]
            assert (row.status, row.attempt, row.failures) == (job.status, job.attempt, job.failures)
            assert (row.pausing, row.stopping) == (job.pausing, job.stopping)
            assert (row.reason or {}).get("code") == job.reason
            assert (row.lease_expires_at is not None) == (job.status is Status.RUNNING)
            assert (row.finished_at is not None) == job.status.final
            assert [event.type for event in events if event.job_id == job_id] == job.events


def test_jobs_behave_as_their_models(sessions: Sessions, spec: JobSpec) -> None:
    class OnThisDatabase(JobLife):
        def __init__(self) -> None:
            super().__init__(sessions, spec)

    run_state_machine_as_test(
        OnThisDatabase,
        settings=limits(
            max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
