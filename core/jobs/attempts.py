"""What a worker does to a job: claim it, report, save, end it.

Every write names the job and the number of the attempt and holds only while that attempt is the running one. Otherwise
it writes nothing and raises LeaseLostError: the job was cancelled, or taken back after its lease ran out.
"""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Text, cast, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from core import ids, totals
from core.access import hub_tokens
from core.capability import UNLIMITED, Capability
from core.errors import LeaseLostError
from core.jobs import fairness
from core.jobs.transitions import hold, record_event, requeue, transition
from core.models import results
from core.specs import JobSpec
from core.states import OUT_OF_MEMORY, PHASE_BEGAN, TOPOLOGY_EVOLVED, Phase, Reason, Status, Transition
from core.tables import Checkpoint, Dataset, Job, JobEvent, JobMetric, Json
from core.totals import Kind, Sum


class Fault(StrEnum):
    """Whose fault a failure is."""

    USER = "user_error"
    SYSTEM = "system_error"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A claimed job, as it stood at the claim. `number` is the fence."""

    job_id: str
    number: int
    tenant: str
    request_id: str | None
    traceparent: str | None
    spec: JobSpec
    dataset_key: str
    dataset_sha256: str
    resume: Json | None
    scores: dict[str, float]
    stop_step: int | None
    """The step from which on it is to train no further; None: to its end."""
    micro_batch: int | None
    """Windows on the device at a time, where memory ran out before."""
    has: Capability
    """What its worker has."""
    model_files: list[Json]
    """Where the model is another job's result: its files, with the keys of their objects."""
    hub_token: str | None
    """The tenant's own, sealed."""


@dataclass(frozen=True, slots=True)
class Requests:
    """What the tenant wants of the running attempt."""

    pausing: bool
    """To save its state and give the job back."""
    stop_step: int | None
    """To end training at this step, or the next one, and publish what there is."""


def claim(
    session: Session,
    worker: str,
    lease_seconds: float,
    has: Capability = UNLIMITED,
    *,
    tenant_running: int = 0,
    key_running: int = 0,
) -> Attempt | None:
    """The job whose turn it is, now running under a new attempt; None when none waits that this worker can do.

    A row that another worker is claiming is skipped, not waited for, and so is one whose request newer software took:
    it waits for a newer worker. One whose request this software refuses fails, and does not keep the others waiting.
    """
    query = fairness.next_job(session, has, tenant_running, key_running)
    while found := session.execute(query).first():
        job, dataset = found
        lease = _lease(lease_seconds)
        if not transition(
            session,
            job.id,
            Transition.CLAIMED,
            attempt=job.attempt,
            data={"worker": worker, "kind": has.device_name},
            worker=worker,
            lease_expires_at=lease,
        ):
            raise LeaseLostError(f"{job.id} moved while its row was locked")
        if spec := _understood(session, job):
            token = hub_tokens.find_encrypted(session, job.tenant)
            return _attempt(job, spec, dataset, has, _model_files(session, job), hub_token=token)
    return None


def _understood(session: Session, job: Job) -> JobSpec | None:
    """The request of a job that was just claimed; None, and the job has failed, when this software refuses it."""
    try:
        return JobSpec.model_validate(job.spec)
    except ValidationError as error:
        flaws = "; ".join(f"{'.'.join(map(str, flaw['loc']))}: {flaw['msg']}" for flaw in error.errors())
        told = {
            "fault": Fault.SYSTEM,
            "code": "request_outdated",
            "message": f"The software that runs now refuses the request, which older one took: {flaws}. Make it anew.",
        }
        transition(session, job.id, Transition.FAILED, attempt=job.attempt + 1, data={"error": told}, error=told)
        return None


def _model_files(session: Session, job: Job) -> list[Json]:
    """None where the model is no result, or where that is gone: then the training process finds no such model."""
    reference = job.spec["model"]
    result = results.find(session, job.tenant, reference) if results.is_result(reference) else None
    return results.files(result) if result else []


def _attempt(
    job: Job, spec: JobSpec, dataset: Dataset, has: Capability, model_files: list[Json], *, hub_token: str | None
) -> Attempt:
    """As the row was when it was found; its number has been raised since."""
    return Attempt(
        job_id=job.id,
        number=job.attempt + 1,
        tenant=job.tenant,
        request_id=job.request_id,
        traceparent=job.traceparent,
        spec=spec,
        dataset_key=dataset.object_key,
        dataset_sha256=dataset.sha256,
        resume=job.resume,
        scores=job.scores,
        stop_step=_stop_step(job.stopping, job.stop_step, job.step),
        micro_batch=job.micro_batch,
        has=has,
        model_files=model_files,
        hub_token=hub_token,
    )


def heartbeat(session: Session, attempt: Attempt, lease_seconds: float) -> Requests:
    """Renew the lease. What a reader sees of the job stays as it is, and so does `updated_at`."""
    _write(session, attempt, lease_expires_at=_lease(lease_seconds), updated_at=Job.updated_at)
    query = select(Job.pausing, Job.stopping, Job.stop_step, Job.step).where(Job.id == attempt.job_id)
    pausing, stopping, asked, step = session.execute(query).one()
    return Requests(pausing, _stop_step(stopping, asked, step))


def set_progress(session: Session, attempt: Attempt, *, phase: Phase, progress: float, step: int) -> None:
    """Where the attempt is: its phase, the share 0..1 of the whole job that is done, the optimizer step.

    Another phase than before leaves the event `phase.began`.
    """
    former, seconds = _phase(session, attempt)
    begins = {"phase_at": func.now()} if phase != former else {}
    _write(session, attempt, phase=phase, progress=progress, step=step, **begins)
    if begins:
        _passed(session, former, seconds)
        record_event(session, attempt.job_id, attempt.number, PHASE_BEGAN, {"phase": phase})


def add_metrics(session: Session, attempt: Attempt, rows: list[tuple[int, dict[str, float]]]) -> None:
    """Write (step, values) rows; a step that is there already is replaced."""
    if not rows:
        return
    _write(session, attempt)
    news = insert(JobMetric).values(
        [{"job_id": attempt.job_id, "step": step, "attempt": attempt.number, "values": v} for step, v in rows]
    )
    fresh = {name: news.excluded[name] for name in ("attempt", "values")}
    session.execute(news.on_conflict_do_update(index_elements=["job_id", "step"], set_=fresh))


def add_event(session: Session, attempt: Attempt, type: str, data: dict[str, Any]) -> None:  # noqa: A002
    """Tell the job's readers something that is no change of its status."""
    _write(session, attempt)
    record_event(session, attempt.job_id, attempt.number, type, data)


def record_evolution(session: Session, attempt: Attempt, data: Json) -> None:
    """Leave the event `topology.evolved` of `data["step"]`.

    An attempt that goes on from a state takes some steps again: what such a step did is told already.
    """
    _write(session, attempt)
    told = select(JobEvent.id).where(
        JobEvent.job_id == attempt.job_id,
        JobEvent.type == TOPOLOGY_EVOLVED,
        JobEvent.data["step"].as_integer() == data["step"],
    )
    if session.scalar(told.limit(1)) is None:
        record_event(session, attempt.job_id, attempt.number, TOPOLOGY_EVOLVED, data)


def restart_training(session: Session, attempt: Attempt, type: str, why: str) -> None:  # noqa: A002
    """The job's state of training is lost, as an event of this type says: its steps count no more.

    What they reported goes, as other steps take their place; so does the score of what they trained.
    """
    trained = cast("repaired", Text)
    _write(session, attempt, step=0, resume=Job.resume.concat({"step": 0}), scores=Job.scores.op("-")(trained))
    record_event(session, attempt.job_id, attempt.number, type, {"message": why})
    session.execute(delete(JobMetric).where(JobMetric.job_id == attempt.job_id))
    mine = JobEvent.job_id == attempt.job_id
    session.execute(delete(JobEvent).where(mine, JobEvent.type == TOPOLOGY_EVOLVED))


def add_scores(session: Session, attempt: Attempt, values: dict[str, float]) -> None:
    """Add scores to those that are known."""
    _write(session, attempt, scores=Job.scores.concat(values))


def save_resume(session: Session, attempt: Attempt, resume: Json) -> Json | None:
    """Make `resume` the state that the next attempt starts from; returns the former one, whose objects may go.

    A state further on forgives the failures before it: what is limited is how often a job fails at one place. From now
    on the job needs a device of the same kind.
    """
    former = session.scalar(select(Job.resume).where(Job.id == attempt.job_id).with_for_update())
    further = former is None or resume["step"] > former["step"]
    needs = Job.needs.concat({"device": attempt.has.device})
    _write(session, attempt, resume=resume, needs=needs, failures=0 if further else Job.failures)
    kept = {file["key"] for file in former["files"]} if former else set()
    fresh = sum(file["size"] for file in resume["files"] if file["key"] not in kept)
    totals.add(session, Sum.UPLOADED_BYTES, Kind.STATE, fresh)
    return former


def publish(
    session: Session,
    attempt: Attempt,
    *,
    step: int,
    prefix: str,
    sha256: str,
    files: list[Json],
    scores: dict[str, float],
    measured: Json,
    days: int = 0,
) -> None:
    """The job has succeeded with this checkpoint, all of whose objects are in place under `prefix`.

    It is kept for so many days; 0: for good.
    """
    checkpoint_id = ids.new("ckpt")
    expires = session.scalars(select(func.now())).one() + timedelta(days=days) if days else None
    data = {"checkpoint": checkpoint_id, "sha256": sha256, "expires_at": expires and expires.isoformat()}
    phase, seconds = _phase(session, attempt)
    _move(session, attempt, Transition.SUCCEEDED, data, progress=1.0, step=step, scores=scores, measured=measured)
    session.add(
        Checkpoint(
            id=checkpoint_id,
            job_id=attempt.job_id,
            attempt=attempt.number,
            step=step,
            prefix=prefix,
            sha256=sha256,
            files=files,
            bytes=sum(file["size"] for file in files),
            scores=scores,
            expires_at=expires,
        )
    )
    _passed(session, phase, seconds)
    totals.add(session, Sum.UPLOADED_BYTES, Kind.CHECKPOINT, sum(file["size"] for file in files))


def fail(
    session: Session, attempt: Attempt, *, fault: Fault, code: str, message: str, retry: bool, max_failures: int
) -> bool:
    """End the attempt with an error. True when the job will be tried again, False when it has failed for good."""
    error = {"fault": fault, "code": code, "message": message}
    failures = 1 + session.scalars(select(Job.failures).where(Job.id == attempt.job_id)).one()
    if retry and failures < max_failures:
        _requeue(session, attempt, Transition.RETRIED, {"error": error})
        return True
    _move(session, attempt, Transition.FAILED, {"error": error}, error=error, failures=failures)
    return False


def fail_for_memory(
    session: Session, attempt: Attempt, *, message: str, micro_batch: int | None, larger: bool, max_failures: int
) -> bool:
    """End the attempt for want of memory: the user's error. Tried again once with `micro_batch`, where there is one.

    After that, where a `larger` device of the kind is at hand, it is tried there, as it was asked for and with no
    failure counted yet. True when the job will be tried again.
    """
    error = {"fault": Fault.USER, "code": OUT_OF_MEMORY, "message": message}
    if micro_batch is not None and attempt.micro_batch is None:
        _requeue(
            session, attempt, Transition.RETRIED, {"error": error, "micro_batch": micro_batch}, micro_batch=micro_batch
        )
    elif larger:
        needs = {"device": attempt.has.device, "memory": attempt.has.memory + 1}
        data = {"error": error, "needs": needs}
        _requeue(
            session, attempt, Transition.RETRIED, data, needs=Job.needs.concat(needs), micro_batch=None, failures=0
        )
    else:
        return fail(
            session,
            attempt,
            fault=Fault.USER,
            code=OUT_OF_MEMORY,
            message=message,
            retry=False,
            max_failures=max_failures,
        )
    return True


def hold_for_space(session: Session, attempt: Attempt, reason: Reason, message: str, needs: int) -> None:
    """Pause the job until there is room for so many bytes, or as was asked for; the attempt is not charged.

    No worker without that room takes it from now on.
    """
    _requeue(session, attempt, Transition.RELEASED, {}, needs=Job.needs.concat({"disk": needs}))
    if session.scalar(select(Job.status).where(Job.id == attempt.job_id)) == Status.QUEUED:
        hold(session, attempt.job_id, reason, message, needs=needs)


def release(session: Session, attempt: Attempt) -> None:
    """Give the job back to the queue, or pause it where that was asked for; the attempt is not charged."""
    _requeue(session, attempt, Transition.RELEASED, {})


def _phase(session: Session, attempt: Attempt) -> tuple[str | None, float]:
    """The phase that the job is in, and for how many seconds; its row is locked."""
    seconds = func.coalesce(func.extract("epoch", func.now() - Job.phase_at), 0)
    query = select(Job.phase, seconds).where(Job.id == attempt.job_id).with_for_update()
    phase, lasted = session.execute(query).one()
    return phase, float(lasted)


def _passed(session: Session, phase: str | None, seconds: float) -> None:
    if phase is not None:
        totals.add(session, Sum.PHASE_SECONDS, phase, seconds)


def _stop_step(stopping: bool, asked: int | None, step: int) -> int | None:
    """Older software, when asked to stop, keeps no step: the present one then."""
    if not stopping:
        return None
    return step if asked is None else asked


def _lease(seconds: float) -> Any:
    return func.now() + timedelta(seconds=seconds)


def _write(session: Session, attempt: Attempt, **values: Any) -> None:
    # Setting the number to itself takes the row's lock even when there is nothing else to set.
    mine = (Job.id == attempt.job_id, Job.attempt == attempt.number, Job.status == Status.RUNNING)
    change = update(Job).where(*mine).values({"attempt": attempt.number, **values}).returning(Job.id)
    if session.execute(change, execution_options={"synchronize_session": False}).first() is None:
        raise _lost(attempt)


def _move(session: Session, attempt: Attempt, to: Transition, data: dict[str, Any], **values: Any) -> None:
    if not transition(session, attempt.job_id, to, attempt=attempt.number, data=data, **values):
        raise _lost(attempt)


def _requeue(session: Session, attempt: Attempt, to: Transition, data: dict[str, Any], **values: Any) -> None:
    if not requeue(session, attempt.job_id, to, attempt=attempt.number, data=data, **values):
        raise _lost(attempt)


def _lost(attempt: Attempt) -> LeaseLostError:
    return LeaseLostError(f"attempt {attempt.number} of {attempt.job_id} is no longer the running one")
