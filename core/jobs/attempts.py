"""Database writes of a worker for its job: claim it, report progress, save its state, end it.

Every write except the claim names the job and the number of the attempt. The write takes effect only if that attempt
is the running one. Otherwise it writes nothing and raises LeaseLostError. Then the job was cancelled (and maybe
deleted), or the attempt was ended because its lease expired.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

from pydantic import ValidationError
from sqlalchemy import ARRAY, Text, cast, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from core import ids, totals
from core.access import hub_tokens
from core.capability import Capability
from core.errors import LeaseLostError
from core.jobs import fairness, pushes
from core.jobs.transitions import hold, record_event, requeue, transition, with_way_out
from core.models import results
from core.specs import Dtype, JobSpec
from core.states import OUT_OF_MEMORY, PHASE_BEGAN, TOPOLOGY_EVOLVED, Phase, Reason, Status, Transition
from core.stored_specs import read_stored
from core.tables import Checkpoint, Dataset, Job, JobEvent, JobMetric, Json, StoredDataset
from core.totals import Kind, Sum


class Fault(StrEnum):
    """Who can fix a failure: the user (`user_error`) or the operator (`system_error`)."""

    USER = "user_error"
    SYSTEM = "system_error"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A claimed job, as it was at the claim. It can write only while `number` is the job's newest attempt."""

    job_id: str
    number: int
    worker: str
    tenant: str
    request_id: str | None
    traceparent: str | None
    spec: JobSpec
    """The request. Its dtype is not `auto`."""
    dataset: StoredDataset
    retained: StoredDataset | None
    """The dataset to retain. None if the job retains no dataset."""
    held_out: StoredDataset | None
    """The dataset to evaluate on. None if a part of `dataset` is held out instead."""
    resume: Json | None
    scores: dict[str, float]
    stop_step: int | None
    """Step at which training ends early, or None to train all steps."""
    micro_batch: int | None
    """Number of sequences on all devices at a time, set after running out of memory. None: as the request says."""
    capability: Capability
    """What the worker of this attempt can run."""
    model_files: list[Json]
    """Files of the model with the keys of their objects, if the model is the result of another job. Otherwise empty."""
    hub_token: str | None
    """The tenant's token for the model hub, encrypted. None if the tenant has none."""


@dataclass(frozen=True, slots=True)
class PendingActions:
    """Actions of the tenant that the running attempt must execute."""

    pausing: bool
    """True if the attempt must save its state and release the job."""
    stop_step: int | None
    """Step after which it must end training and publish. An attempt past it ends at its next step. None: no stop."""
    run_seconds: float = 0.0
    """Seconds that the job has run, in all attempts together. An attempt must end if the job has run too long."""


def claim(
    session: Session,
    worker: str,
    lease_seconds: float,
    capability: Capability,
    *,
    tenant_running: int,
    key_running: int,
    weights: Mapping[str, float],
) -> Attempt | None:
    """Claim the next job of the queue and start a new attempt. Returns None if `fairness.next_job` finds no job.

    If the request of a job is invalid for this software, the job fails and the next one is claimed.
    """
    limits = {"tenant_limit": tenant_running, "key_limit": key_running}
    while row := fairness.next_job(session, capability, **limits, weights=weights):
        job, _ = row
        spec = _read_spec(job, capability)
        if not transition(
            session,
            job.id,
            Transition.CLAIMED,
            attempt=job.attempt,
            data={"worker": worker, "kind": capability.device_name},
            worker=worker,
            lease_expires_at=_after(lease_seconds),
            dtype=spec.dtype if isinstance(spec, JobSpec) else None,
        ):
            raise LeaseLostError(f"{job.id} changed while its row was locked")
        if isinstance(spec, JobSpec):
            return _attempt(session, row, worker, spec, capability)
        transition(session, job.id, Transition.FAILED, attempt=job.attempt + 1, data={"error": spec}, error=spec)
    return None


def _read_spec(job: Job, capability: Capability) -> JobSpec | Json:
    """Return the request with a dtype other than `auto`, or the error of the job if the request is invalid.

    An attempt that continues from a saved state keeps the dtype of the attempt that saved it, also on another worker.
    """
    bfloat16 = job.dtype == Dtype.BFLOAT16 if job.resume else capability.bfloat16
    try:
        return read_stored(job.spec).resolve_dtype(bfloat16=bfloat16)
    except ValidationError as error:
        flaws = "; ".join(f"{'.'.join(map(str, flaw['loc']))}: {flaw['msg']}" for flaw in error.errors())
        rejected = "The request was accepted by another version of the service; this version rejects it"
        message = f"{rejected}: {flaws}. Create the job again."
        return {"fault": Fault.SYSTEM, "code": "request_outdated", "message": message}


def _attempt(session: Session, row: tuple[Job, Dataset], worker: str, spec: JobSpec, capability: Capability) -> Attempt:
    """Build the attempt. `row` was read before the claim, so `job.attempt` is one less than the new number."""
    job, dataset = row
    return Attempt(
        job_id=job.id,
        number=job.attempt + 1,
        worker=worker,
        tenant=job.tenant,
        request_id=job.request_id,
        traceparent=job.traceparent,
        spec=spec,
        dataset=dataset.stored,
        retained=_stored(session, job.retain_dataset_id),
        held_out=_stored(session, job.evaluate_dataset_id),
        resume=job.resume,
        scores=job.scores,
        stop_step=_stop_step(job.stopping, job.stop_step, job.step),
        micro_batch=job.micro_batch,
        capability=capability,
        model_files=results.files_of(session, job.tenant, job.spec["model"]),
        hub_token=hub_tokens.find_encrypted(session, job.tenant),
    )


def _stored(session: Session, dataset_id: str | None) -> StoredDataset | None:
    return session.get_one(Dataset, dataset_id).stored if dataset_id else None


def heartbeat(session: Session, attempt: Attempt, lease_seconds: float, ran: float) -> PendingActions:
    """Renew the lease and return the actions that the tenant has requested.

    `ran` is the number of seconds since the last heartbeat. Does not change `updated_at`, because
    readers of the job see no difference.
    """
    run_seconds = Job.run_seconds + ran
    _write(session, attempt, lease_expires_at=_after(lease_seconds), run_seconds=run_seconds, updated_at=Job.updated_at)
    query = select(Job.pausing, Job.stopping, Job.stop_step, Job.step, Job.run_seconds).where(Job.id == attempt.job_id)
    pausing, stopping, stop_step, step, run = session.execute(query).one()
    return PendingActions(pausing, _stop_step(stopping, stop_step, step), run)


def set_progress(
    session: Session, attempt: Attempt, *, phase: Phase, progress: float, step: int, remaining: float | None = None
) -> None:
    """Write the phase, the completed fraction of the whole job (0 to 1), and the optimizer step.

    `remaining` is the number of seconds until the job ends, or None. For a new phase, also write `phase.began`.
    """
    previous, seconds = _phase(session, attempt)
    phase_start = {"phase_at": func.now()} if phase != previous else {}
    finish = None if remaining is None else _after(remaining)
    _write(session, attempt, phase=phase, progress=progress, step=step, estimated_finish=finish, **phase_start)
    if phase_start:
        _count_phase(session, previous, seconds)
        record_event(session, attempt.job_id, attempt.number, PHASE_BEGAN, {"phase": phase})


def add_metrics(session: Session, attempt: Attempt, rows: list[tuple[int, dict[str, float]]]) -> None:
    """Write rows of metrics, each as (step, values). Existing rows of the same steps are replaced."""
    if not rows:
        return
    _write(session, attempt)
    statement = insert(JobMetric).values(
        [{"job_id": attempt.job_id, "step": step, "attempt": attempt.number, "values": v} for step, v in rows]
    )
    replaced = {name: statement.excluded[name] for name in ("attempt", "values")}
    session.execute(statement.on_conflict_do_update(index_elements=["job_id", "step"], set_=replaced))


def add_event(session: Session, attempt: Attempt, type: str, data: dict[str, Any]) -> None:  # noqa: A002
    """Write an event that does not report a change of the job's status."""
    _write(session, attempt)
    record_event(session, attempt.job_id, attempt.number, type, data)


def record_evolution(session: Session, attempt: Attempt, data: Json) -> None:
    """Write the event `topology.evolved` of the step `data["step"]`, unless that event exists already.

    An attempt that resumes from a saved state repeats some steps. The events of these steps already exist. The steps of
    events only rise, so only the newest event is read.
    """
    _write(session, attempt)
    events = select(JobEvent).where(JobEvent.job_id == attempt.job_id, JobEvent.type == TOPOLOGY_EVOLVED)
    newest = events.with_only_columns(JobEvent.data["step"].as_integer()).order_by(JobEvent.id.desc()).limit(1)
    if (step := session.scalar(newest)) is None or step < data["step"]:
        record_event(session, attempt.job_id, attempt.number, TOPOLOGY_EVOLVED, data)


def restart_training(session: Session, attempt: Attempt, type: str, message: str) -> None:  # noqa: A002
    """Restart training from step 0 because the saved state is lost. Write an event of this type with `message`.

    Deletes the metrics and topology events of the lost steps, and the scores of the repaired model.
    """
    repaired = cast(["repaired", "repaired_retained"], ARRAY(Text))
    _write(session, attempt, step=0, resume=Job.resume.concat({"step": 0}), scores=Job.scores.op("-")(repaired))
    record_event(session, attempt.job_id, attempt.number, type, {"message": message})
    session.execute(delete(JobMetric).where(JobMetric.job_id == attempt.job_id))
    session.execute(delete(JobEvent).where(JobEvent.job_id == attempt.job_id, JobEvent.type == TOPOLOGY_EVOLVED))


def add_scores(session: Session, attempt: Attempt, values: dict[str, float]) -> None:
    """Add scores to the job. Scores with other names are kept."""
    _write(session, attempt, scores=Job.scores.concat(values))


def save_resume(session: Session, attempt: Attempt, resume: Json) -> Json | None:
    """Store the state from which the next attempt resumes. Return the previous state, or None.

    Objects of the previous state that the new one does not name can be deleted after the commit. If the new state is
    of a later step, the count of failures is reset, because only failures without progress are limited. From now on
    the job needs a device of the same kind, because other kinds do not give the same bits.
    """
    previous = session.scalar(select(Job.resume).where(Job.id == attempt.job_id).with_for_update())
    advanced = previous is None or resume["step"] > previous["step"]
    needs = Job.needs.concat({"device": attempt.capability.device})
    _write(session, attempt, resume=resume, needs=needs, failures=0 if advanced else Job.failures)
    old_keys = {file["key"] for file in previous["files"]} if previous else set()
    uploaded = sum(file["size"] for file in resume["files"] if file["key"] not in old_keys)
    totals.add(session, Sum.UPLOADED_BYTES, Kind.STATE, uploaded)
    return previous


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
    """End the job as succeeded and publish its checkpoint. The objects under `prefix` must already be stored.

    The checkpoint expires after `days` days. With 0, it is kept permanently.
    """
    checkpoint_id = ids.new("ckpt")
    expires = session.scalars(select(func.now())).one() + timedelta(days=days) if days else None
    data = {"checkpoint": checkpoint_id, "sha256": sha256, "expires_at": expires and expires.isoformat()}
    phase, seconds = _phase(session, attempt)
    _transition(session, attempt, Transition.SUCCEEDED, data, progress=1.0, step=step, scores=scores, measured=measured)
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
    pushes.add_requested(session, attempt.tenant, attempt.job_id, checkpoint_id, attempt.spec.output.push)
    _count_phase(session, phase, seconds)
    totals.add(session, Sum.UPLOADED_BYTES, Kind.CHECKPOINT, sum(file["size"] for file in files))


def fail(
    session: Session, attempt: Attempt, *, fault: Fault, code: str, message: str, retry: bool, max_failures: int
) -> bool:
    """End the attempt with an error. Return True if the job is retried, and False if it has failed permanently."""
    error = {"fault": fault, "code": code, "message": message}
    failures = 1 + (session.scalar(select(Job.failures).where(Job.id == attempt.job_id)) or 0)
    if retry and failures < max_failures:
        _requeue(session, attempt, Transition.RETRIED, {"error": error})
        return True
    if fault is Fault.SYSTEM:
        error["message"] = with_way_out(message, attempt.job_id)
    _transition(session, attempt, Transition.FAILED, {"error": error}, error=error, failures=failures)
    return False


def fail_out_of_memory(
    session: Session, attempt: Attempt, *, message: str, micro_batch: int | None, larger: bool
) -> bool:
    """End an attempt that ran out of memory. Return True if the job is retried, and False if it has failed.

    The error counts as the user's. The job is retried once with `micro_batch`, unless that is None. After that, if
    `larger` is true (some worker has a larger device of the same kind), the job is retried there. That retry uses the
    micro-batch of the request and resets the count of failures.
    """
    error = {"fault": Fault.USER, "code": OUT_OF_MEMORY, "message": message}
    if micro_batch is not None and attempt.micro_batch is None:
        data = {"error": error, "micro_batch": micro_batch}
        _requeue(session, attempt, Transition.RETRIED, data, micro_batch=micro_batch)
    elif larger:
        needs = {"device": attempt.capability.device, "memory": attempt.capability.memory + 1}
        values = {"needs": Job.needs.concat(needs), "micro_batch": None, "failures": 0}
        _requeue(session, attempt, Transition.RETRIED, {"error": error, "needs": needs}, **values)
    else:
        return fail(
            session, attempt, fault=Fault.USER, code=OUT_OF_MEMORY, message=message, retry=False, max_failures=0
        )
    return True


def pause_for(session: Session, attempt: Attempt, reason: Reason, message: str, needs: int) -> None:
    """Release the job and pause it until the cause `reason` is over. The attempt does not count as a failure.

    If the tenant has requested a pause, that pause takes precedence. From now on only workers with `needs`
    bytes of free disk space can run the job.
    """
    _requeue(session, attempt, Transition.RELEASED, {}, needs=Job.needs.concat({"disk": needs}))
    if session.scalar(select(Job.status).where(Job.id == attempt.job_id)) == Status.QUEUED:
        hold(session, attempt.job_id, reason, message, needs=needs)


def release(session: Session, attempt: Attempt) -> None:
    """Release the job: requeue it, or pause it if the tenant has requested a pause. Does not count as a failure."""
    _requeue(session, attempt, Transition.RELEASED, {})


def _phase(session: Session, attempt: Attempt) -> tuple[str | None, float]:
    """Lock the row of the job. Return its phase and the seconds since that phase began."""
    seconds = func.coalesce(func.extract("epoch", func.now() - Job.phase_at), 0)
    query = select(Job.phase, seconds).where(Job.id == attempt.job_id).with_for_update()
    if (row := session.execute(query).first()) is None:
        raise _lease_lost(attempt)
    return row[0], float(row[1])


def _count_phase(session: Session, phase: str | None, seconds: float) -> None:
    if phase is not None:
        totals.add(session, Sum.PHASE_SECONDS, phase, seconds)


def _stop_step(stopping: bool, stop_step: int | None, step: int) -> int | None:
    """Return the step at which training must stop, or None.

    Older software stored no step for a stop. Then the result is the current step.
    """
    if not stopping:
        return None
    return step if stop_step is None else stop_step


def _after(seconds: float) -> Any:
    # `now()` is the start of the transaction, but a claim may wait for other claims.
    return func.clock_timestamp() + timedelta(seconds=seconds)


def _write(session: Session, attempt: Attempt, **values: Any) -> None:
    # Setting the number to itself takes the row lock even if there is nothing else to set.
    # After a restore of the database, two workers can have the same attempt number.
    same = (Job.attempt == attempt.number, Job.worker == attempt.worker)
    owned = (Job.id == attempt.job_id, Job.status == Status.RUNNING, *same)
    statement = update(Job).where(*owned).values({"attempt": attempt.number, **values}).returning(Job.id)
    if session.execute(statement, execution_options={"synchronize_session": False}).first() is None:
        raise _lease_lost(attempt)


def _transition(session: Session, attempt: Attempt, change: Transition, data: dict[str, Any], **values: Any) -> None:
    _write(session, attempt)
    transition(session, attempt.job_id, change, attempt=attempt.number, data=data, **values)


def _requeue(session: Session, attempt: Attempt, change: Transition, data: dict[str, Any], **values: Any) -> None:
    _write(session, attempt)
    requeue(session, attempt.job_id, change, attempt=attempt.number, data=data, **values)


def _lease_lost(attempt: Attempt) -> LeaseLostError:
    return LeaseLostError(f"attempt {attempt.number} of {attempt.job_id} is no longer the running one")
