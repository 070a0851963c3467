"""The life of jobs against a model of it: whatever workers, sweep and user do, in whatever order, and at once."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from dataclasses import replace as copy
from itertools import permutations

from hypothesis import HealthCheck, strategies
from hypothesis import settings as limits
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from core.errors import LeaseLostError, ProblemError
from core.jobs import actions, attempts, jobs, recovery
from core.jobs.attempts import Attempt, Fault
from core.specs import JobSpec
from core.states import Phase, Reason, Status, Transition
from core.tables import Job, JobEvent
from tests.core.conftest import Sessions
from tests.core.jobs.test_attempts import expire

MAX_FAILURES = 3
WISHES = ("cancel", "pause", "resume", "start", "stop")
DEEDS = ("report", "save", "publish", "retry", "user", "release")
MOVES = select(JobEvent.job_id, JobEvent.type).where(JobEvent.type.startswith("job.")).order_by(JobEvent.id)
"""A new phase leaves an event too, and is no move."""


@dataclass
class Believed:
    """What the model believes of a job. Its methods are the deeds; False where one is refused and changes nothing."""

    status: Status = Status.QUEUED
    attempt: int = 0
    failures: int = 0
    pausing: bool = False
    stopping: bool = False
    saved: bool = False
    reason: Reason | None = None
    events: list[str] = field(default_factory=lambda: ["job.created"])

    def go(self, move: Transition, status: Status | None = None, reason: Reason | None = None) -> bool:
        self.events.append(f"job.{move}")
        if status is not None:
            self.status, self.reason = status, reason
            self.pausing = self.pausing and status is not Status.PAUSED and not status.final
        return True

    def shelve(self, reason: Reason) -> bool:
        return self.go(Transition.PAUSED, Status.PAUSED, reason)

    def requeue(self, move: Transition) -> bool:
        self.go(move, Status.QUEUED)
        return self.shelve(Reason.ASKED) if self.pausing else True

    def charge(self, move: Transition) -> bool:
        self.failures += 1
        return self.requeue(move) if self.failures < MAX_FAILURES else self.go(Transition.FAILED, Status.FAILED)

    def cancel(self) -> bool:
        if self.status.final:
            return self.status is Status.CANCELLED
        return self.go(Transition.CANCELLED, Status.CANCELLED)

    def pause(self) -> bool:
        if self.status is Status.QUEUED:
            return self.shelve(Reason.ASKED)
        if self.status is Status.RUNNING and not self.pausing:
            self.pausing = True
            return self.go(Transition.PAUSING)
        return not self.status.final

    def resume(self) -> bool:
        if self.status is Status.PAUSED:
            return self.go(Transition.RESUMED, Status.QUEUED)
        if self.pausing:
            self.pausing = False
            return self.go(Transition.UNPAUSED)
        return not self.status.final

    def start(self) -> bool:
        if self.reason is Reason.NOT_STARTED:
            return self.go(Transition.STARTED, Status.QUEUED)
        return self.status in {Status.QUEUED, Status.RUNNING}

    def stop(self) -> bool:
        if self.stopping or self.status is Status.CANCELLED:
            return True
        if self.status.final:
            return False
        if self.status is not Status.RUNNING and not self.saved:
            return self.go(Transition.CANCELLED, Status.CANCELLED)
        self.stopping, self.pausing = True, False
        self.go(Transition.STOPPING)
        return self.go(Transition.RESUMED, Status.QUEUED) if self.status is Status.PAUSED else True

    def work(self, deed: str, number: int) -> bool:
        """What an attempt does, if it is the running one."""
        if (self.status, self.attempt) != (Status.RUNNING, number):
            return False
        match deed:
            case "save":
                self.failures, self.saved = self.failures if self.saved else 0, True
            case "publish":
                self.go(Transition.SUCCEEDED, Status.SUCCEEDED)
            case "retry":
                self.charge(Transition.RETRIED)
            case "user":
                self.failures += 1
                self.go(Transition.FAILED, Status.FAILED)
            case "release":
                self.requeue(Transition.RELEASED)
        return True


def work(session: Session, attempt: Attempt, deed: str) -> None:
    match deed:
        case "report":
            attempts.heartbeat(session, attempt, 60)
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
    """Attempts stay in their bundle when they are over: they are the workers that come back from the dead."""

    made = Bundle("made")
    held = Bundle("held")

    def __init__(self, sessions: Sessions, spec: JobSpec) -> None:
        super().__init__()
        self.sessions, self.spec = sessions, spec
        self.believed: dict[str, Believed] = {}
        with sessions.begin() as session:
            session.execute(text("TRUNCATE jobs CASCADE"))

    def wish(self, job_id: str, wish: str) -> bool:
        """Ask for it in a connection of its own; whether it was granted."""
        try:
            with self.sessions.begin() as session:
                getattr(actions, wish)(session, "ours", job_id)
        except ProblemError:
            return False
        return True

    def do(self, attempt: Attempt, deed: str) -> bool:
        try:
            with self.sessions.begin() as session:
                work(session, attempt, deed)
        except LeaseLostError:
            return False
        return True

    @rule(target=made, priority=strategies.integers(-1, 1), auto_start=strategies.sampled_from([True, True, False]))
    def create(self, priority: int, auto_start: bool) -> str:
        asked = self.spec.model_copy(update={"priority": priority, "auto_start": auto_start})
        with self.sessions.begin() as session:
            job, _ = jobs.create(session, "ours", asked, None, "")
        self.believed[job.id] = Believed()
        if not auto_start:
            self.believed[job.id].shelve(Reason.NOT_STARTED)
        return job.id

    @rule(target=held)
    def claim(self) -> Attempt | None:
        with self.sessions.begin() as session:
            attempt = attempts.claim(session, "worker", 60)
        waiting = [job for job in self.believed.values() if job.status is Status.QUEUED]
        assert (attempt is None) == (not waiting)
        if attempt is not None:
            job = self.believed[attempt.job_id]
            assert job.status is Status.QUEUED
            job.attempt += 1
            assert (attempt.number, attempt.stop_step is not None) == (job.attempt, job.stopping)
            job.go(Transition.CLAIMED, Status.RUNNING)
        return attempt

    @rule(attempt=held, deed=strategies.sampled_from(DEEDS))
    def worker_does(self, attempt: Attempt | None, deed: str) -> None:
        if attempt is not None:
            assert self.do(attempt, deed) == self.believed[attempt.job_id].work(deed, attempt.number)

    @rule(job_id=made, wish=strategies.sampled_from(WISHES))
    def user_asks(self, job_id: str, wish: str) -> None:
        assert self.wish(job_id, wish) == getattr(self.believed[job_id], wish)()

    @rule(
        attempt=held,
        deed=strategies.sampled_from(DEEDS),
        wanted=strategies.lists(strategies.sampled_from(WISHES), min_size=1, max_size=2),
    )
    def at_once(self, attempt: Attempt | None, deed: str, wanted: list[str]) -> None:
        """Whatever comes at once is as if it had come one after the other."""
        if attempt is None:
            return
        job_id, number = attempt.job_id, attempt.number
        acts: list[tuple[Callable[[], bool], Callable[[Believed], bool]]] = [
            (lambda: self.do(attempt, deed), lambda job: job.work(deed, number)),
            *(
                (lambda wish=wish: self.wish(job_id, wish), lambda job, wish=wish: getattr(job, wish)())
                for wish in wanted
            ),
        ]
        start = threading.Barrier(len(acts))

        def act(real: Callable[[], bool]) -> bool:
            start.wait()
            return real()

        with ThreadPoolExecutor(len(acts)) as pool:
            granted = list(pool.map(act, [real for real, _ in acts]))
        self.believed[job_id] = self.explained(job_id, [model for _, model in acts], granted)

    def explained(self, job_id: str, models: list[Callable[[Believed], bool]], granted: list[bool]) -> Believed:
        """The belief after the one order of deeds that leads to what is seen."""
        with self.sessions.begin() as session:
            seen = list(session.scalars(MOVES.with_only_columns(JobEvent.type).where(JobEvent.job_id == job_id)))
        for order in permutations(range(len(models))):
            job = copy(self.believed[job_id], events=list(self.believed[job_id].events))
            answers = {number: models[number](job) for number in order}
            if [answers[number] for number in range(len(models))] == granted and job.events == seen:
                return job
        raise AssertionError(f"no order of the deeds explains {granted} and {seen}")

    @rule(job_id=made)
    def fall_silent(self, job_id: str) -> None:
        expire(self.sessions, job_id)
        with self.sessions.begin() as session:
            taken = recovery.requeue_lost(session, MAX_FAILURES)
        job = self.believed[job_id]
        assert taken == ([job_id] if job.status is Status.RUNNING else [])
        if taken:
            job.charge(Transition.LOST)

    @invariant()
    def rows_are_as_believed(self) -> None:
        with self.sessions.begin() as session:
            rows = {row.id: row for row in session.scalars(select(Job))}
            events = session.execute(MOVES).all()
        assert rows.keys() == self.believed.keys()
        for job_id, job in self.believed.items():
            row = rows[job_id]
            assert (row.status, row.attempt, row.failures) == (job.status, job.attempt, job.failures)
            assert (row.pausing, row.stopping) == (job.pausing, job.stopping)
            assert (row.reason or {}).get("code") == job.reason
            assert (row.lease_expires_at is not None) == (job.status is Status.RUNNING)
            assert (row.finished_at is not None) == job.status.final
            assert [event.type for event in events if event.job_id == job_id] == job.events


def test_a_job_lives_as_believed_whatever_happens(sessions: Sessions, spec: JobSpec) -> None:
    class OnThisDatabase(JobLife):
        def __init__(self) -> None:
            super().__init__(sessions, spec)

    run_state_machine_as_test(
        OnThisDatabase,
        settings=limits(
            max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
