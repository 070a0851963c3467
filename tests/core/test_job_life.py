"""The life of jobs against a model of it: whatever several workers, the sweep and the user do, and in which order."""

from dataclasses import dataclass, field

from hypothesis import HealthCheck, strategies
from hypothesis import settings as limits
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from core import attempts, jobs, recovery
from core.attempts import Attempt, Fault
from core.errors import LeaseLostError, ProblemError
from core.specs import JobSpec
from core.states import Move, Phase, Status
from core.tables import Job, JobEvent
from tests.core.conftest import Sessions
from tests.core.test_attempts import expire

MAX_FAILURES = 3


@dataclass
class Believed:
    """What the model believes of a job."""

    status: Status = Status.QUEUED
    attempt: int = 0
    failures: int = 0
    events: list[str] = field(default_factory=lambda: ["job.created"])

    def go(self, move: Move, status: Status) -> None:
        self.status = status
        self.events.append(f"job.{move}")

    def charge(self, move: Move) -> None:
        self.failures += 1
        lives = self.failures < MAX_FAILURES
        self.go(move if lives else Move.FAILED, Status.QUEUED if lives else Status.FAILED)


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

    def owner(self, attempt: Attempt | None) -> Believed | None:
        """The believed job, when this attempt is the running one."""
        if attempt is None:
            return None
        job = self.believed[attempt.job_id]
        return job if (job.status, job.attempt) == (Status.RUNNING, attempt.number) else None

    @rule(target=made, priority=strategies.integers(-1, 1))
    def create(self, priority: int) -> str:
        asked = self.spec.model_copy(update={"priority": priority})
        with self.sessions.begin() as session:
            job, _ = jobs.create(session, "ours", asked, None, "")
        self.believed[job.id] = Believed()
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
            assert attempt.number == job.attempt
            job.go(Move.CLAIMED, Status.RUNNING)
        return attempt

    @rule(attempt=held)
    def report(self, attempt: Attempt | None) -> None:
        if attempt is None:
            return
        try:
            with self.sessions.begin() as session:
                attempts.heartbeat(session, attempt, 60)
                attempts.progress(session, attempt, phase=Phase.TRAINING, progress=0.5, step=attempt.number)
        except LeaseLostError:
            assert self.owner(attempt) is None
        else:
            assert self.owner(attempt) is not None

    @rule(attempt=held, end=strategies.sampled_from(["publish", "retry", "user", "release"]))
    def end(self, attempt: Attempt | None, end: str) -> None:
        if attempt is None:
            return
        job = self.owner(attempt)
        try:
            with self.sessions.begin() as session:
                self._end(session, attempt, end)
        except LeaseLostError:
            assert job is None
            return
        assert job is not None
        match end:
            case "publish":
                job.go(Move.SUCCEEDED, Status.SUCCEEDED)
            case "retry":
                job.charge(Move.RETRIED)
            case "user":
                job.failures += 1
                job.go(Move.FAILED, Status.FAILED)
            case "release":
                job.go(Move.RELEASED, Status.QUEUED)

    def _end(self, session: Session, attempt: Attempt, end: str) -> None:
        match end:
            case "publish":
                attempts.publish(session, attempt, step=1, prefix="p", sha256="0", files=[], scores={}, measured={})
            case "retry":
                self._fail(session, attempt, Fault.SYSTEM, retry=True)
            case "user":
                self._fail(session, attempt, Fault.USER, retry=False)
            case "release":
                attempts.release(session, attempt)

    def _fail(self, session: Session, attempt: Attempt, fault: Fault, *, retry: bool) -> None:
        attempts.fail(session, attempt, fault=fault, code="c", message="m", retry=retry, max_failures=MAX_FAILURES)

    @rule(job_id=made)
    def cancel(self, job_id: str) -> None:
        job = self.believed[job_id]
        try:
            with self.sessions.begin() as session:
                jobs.cancel(session, "ours", job_id)
        except ProblemError:
            assert job.status in {Status.SUCCEEDED, Status.FAILED}
            return
        if job.status is not Status.CANCELLED:
            job.go(Move.CANCELLED, Status.CANCELLED)

    @rule(job_id=made)
    def fall_silent(self, job_id: str) -> None:
        expire(self.sessions, job_id)
        with self.sessions.begin() as session:
            taken = recovery.reap(session, MAX_FAILURES)
        job = self.believed[job_id]
        assert taken == ([job_id] if job.status is Status.RUNNING else [])
        if taken:
            job.charge(Move.LOST)

    @invariant()
    def rows_are_as_believed(self) -> None:
        with self.sessions.begin() as session:
            rows = {row.id: row for row in session.scalars(select(Job))}
            events = session.execute(select(JobEvent.job_id, JobEvent.type).order_by(JobEvent.id)).all()
        assert rows.keys() == self.believed.keys()
        for job_id, job in self.believed.items():
            row = rows[job_id]
            assert (row.status, row.attempt, row.failures) == (job.status, job.attempt, job.failures)
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
