"""Which worker can run which job: capability against needs."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text, update

from core import workers
from core.capability import Capability
from core.jobs import attempts, fairness
from core.jobs.attempts import Attempt
from core.settings import Settings
from core.specs import SPEC_VERSION, Dtype
from core.states import Reason, Status
from core.tables import Job, Worker
from tests import claims
from tests.claims import UNLIMITED
from tests.core.conftest import GPU, MakeJob, Sessions
from tests.core.jobs.test_attempts import LEASE, row

SWEEP = 10.0
OLDER = replace(GPU, bfloat16=False)
"""A GPU without instructions for bfloat16."""


def claim(sessions: Sessions, capability: Capability) -> Attempt | None:
    with sessions.begin() as session:
        return claims.claim(session, "w1", LEASE, capability=capability)


def claimed(sessions: Sessions, capability: Capability) -> Attempt:
    attempt = claim(sessions, capability)
    assert attempt is not None
    return attempt


def update_jobs(sessions: Sessions, **values: Any) -> None:
    with sessions.begin() as session:
        session.execute(update(Job).values(**values))


@pytest.mark.parametrize(
    ("needs", "able"),
    [
        ({}, True),
        ({"device": "cuda", "memory": GPU.memory, "disk": GPU.disk}, True),
        ({"device": "cpu"}, False),
        ({"memory": GPU.memory + 1}, False),
        ({"disk": GPU.disk + 1}, False),
    ],
    ids=str,
)
def test_a_worker_claims_and_is_counted_for_only_what_it_can_run(
    needs: dict[str, Any], able: bool, sessions: Sessions, make_job: MakeJob
) -> None:
    job_id = make_job()
    update_jobs(sessions, needs=needs)
    with sessions.begin() as session:
        workers.record_heartbeat(session, "w1", GPU)
        assert workers.count_capable(session, row(sessions, job_id), SWEEP) == (1, int(able))
    assert (claim(sessions, GPU) is not None) is able


def test_a_job_on_several_devices_waits_for_a_worker_that_has_them(
    sessions: Sessions, make_job: MakeJob, settings: Settings
) -> None:
    job_id, small = make_job(5, devices=2), make_job()
    assert claimed(sessions, GPU).job_id == small
    with sessions.begin() as session:
        workers.record_heartbeat(session, "w1", GPU)
        reason = fairness.waiting_reason(session, session.get_one(Job, job_id), settings)
    assert reason is not None
    assert "a worker with 2 devices" in reason["message"]
    assert claimed(sessions, replace(GPU, devices=4)).job_id == job_id


def test_a_worker_with_too_little_disk_space_claims_the_next_job(sessions: Sessions, make_job: MakeJob) -> None:
    large, small = make_job(5), make_job()
    attempt = claimed(sessions, UNLIMITED)
    with sessions.begin() as session:
        attempts.pause_for(session, attempt, Reason.DISK_FULL, "m", needs=100)
        session.execute(text("UPDATE jobs SET status = 'queued', reason = NULL WHERE status = 'paused'"))
    assert claimed(sessions, replace(UNLIMITED, disk=99)).job_id == small
    assert claim(sessions, replace(UNLIMITED, disk=99)) is None
    assert claimed(sessions, replace(UNLIMITED, disk=100)).job_id == large


def test_a_job_with_a_saved_state_needs_the_same_kind_of_device(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    for saves in (False, True):
        attempt = claimed(sessions, GPU)
        with sessions.begin() as session:
            if saves:
                attempts.save_resume(session, attempt, {"step": 0, "files": []})
            attempts.release(session, attempt)
        if not saves:
            with sessions.begin() as session:
                attempts.release(session, claimed(sessions, UNLIMITED))
    assert claim(sessions, UNLIMITED) is None
    assert claimed(sessions, GPU).job_id == job_id


def save(sessions: Sessions, attempt: Attempt) -> None:
    with sessions.begin() as session:
        attempts.save_resume(session, attempt, {"step": 0, "files": []})


@pytest.mark.parametrize("saver", [GPU, OLDER], ids=["bfloat16", "float32"])
def test_auto_is_the_data_type_of_the_worker_until_a_state_is_saved(
    saver: Capability, sessions: Sessions, make_job: MakeJob
) -> None:
    job_id = make_job(dtype=Dtype.AUTO)
    kept = Dtype.BFLOAT16 if saver.bfloat16 else Dtype.FLOAT32
    expected = ((GPU, Dtype.BFLOAT16), (OLDER, Dtype.FLOAT32), (saver, kept), (GPU, kept), (OLDER, kept))
    for number, (capability, dtype) in enumerate(expected, 1):
        attempt = claimed(sessions, capability)
        assert (attempt.number, attempt.spec.dtype, row(sessions, job_id).dtype) == (number, dtype, dtype)
        if number == 3:
            save(sessions, attempt)
        with sessions.begin() as session:
            if number == 4:
                attempts.restart_training(session, attempt, "state.lost", "m")
            attempts.release(session, attempt)
    assert row(sessions, job_id).spec["dtype"] == "auto", "the request stays as it is"


def test_a_job_that_names_its_data_type_runs_in_it_on_every_worker(sessions: Sessions, make_job: MakeJob) -> None:
    for dtype in (Dtype.FLOAT32, Dtype.BFLOAT16):
        job_id = make_job(dtype=dtype)
        for capability in (GPU, OLDER):
            attempt = claimed(sessions, capability)
            assert (attempt.spec.dtype, row(sessions, job_id).dtype) == (dtype, dtype)
            with sessions.begin() as session:
                attempts.release(session, attempt)
        update_jobs(sessions, status=Status.CANCELLED)


def test_a_job_of_software_without_data_types_stays_in_float32(sessions: Sessions, make_job: MakeJob) -> None:
    make_job(dtype=Dtype.AUTO)
    save(sessions, attempt := claimed(sessions, GPU))
    with sessions.begin() as session:
        attempts.release(session, attempt)
        session.execute(text("UPDATE jobs SET spec = spec - 'dtype', dtype = NULL"))
    assert claimed(sessions, GPU).spec.dtype is Dtype.FLOAT32


def run_out(sessions: Sessions, attempt: Attempt) -> bool:
    """Run out of memory in training, where one window at a time can be tried."""
    with sessions.begin() as session:
        larger = workers.has_larger(session, attempt.job_id, attempt.capability, SWEEP)
        return attempts.fail_out_of_memory(session, attempt, message="m", micro_batch=1, larger=larger)


def test_a_job_that_runs_out_of_memory_moves_to_larger_devices_until_there_is_none(
    sessions: Sessions, make_job: MakeJob
) -> None:
    job_id = make_job()
    large = replace(GPU, memory=2 * GPU.memory)
    with sessions.begin() as session:
        workers.record_heartbeat(session, "small", GPU)
        workers.record_heartbeat(session, "large", large)
        workers.record_heartbeat(session, "processor", UNLIMITED)
    for capability, micro_batch in ((GPU, None), (GPU, 1), (large, None)):
        attempt = claimed(sessions, capability)
        assert attempt.micro_batch == micro_batch
        assert run_out(sessions, attempt)
    assert row(sessions, job_id).failures == 1
    assert claim(sessions, GPU) is None
    assert claim(sessions, UNLIMITED) is None
    assert not run_out(sessions, claimed(sessions, large))
    assert row(sessions, job_id).status == Status.FAILED


def test_larger_devices_count_only_if_there_are_enough_for_the_job(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    with sessions.begin() as session:
        workers.record_heartbeat(session, "large", replace(GPU, memory=2 * GPU.memory))
        assert workers.has_larger(session, job_id, GPU, SWEEP, 1)
        assert not workers.has_larger(session, job_id, GPU, SWEEP, 2)
        workers.record_heartbeat(session, "two", replace(GPU, memory=2 * GPU.memory, devices=2))
        assert workers.has_larger(session, job_id, GPU, SWEEP, 2)


def test_larger_devices_of_workers_with_older_software_do_not_count(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    with sessions.begin() as session:
        older = replace(GPU, memory=2 * GPU.memory, spec_version=SPEC_VERSION - 1)
        workers.record_heartbeat(session, "older", older)
        assert not workers.has_larger(session, job_id, GPU, SWEEP)


def test_a_job_that_no_live_worker_can_run_reports_the_reason(
    sessions: Sessions, make_job: MakeJob, settings: Settings
) -> None:
    job_id = make_job()

    def reason() -> tuple[str, str]:
        with sessions.begin() as session:
            row = fairness.waiting_reason(session, session.get_one(Job, job_id), settings)
        assert row is not None
        return row["code"], row["message"]

    assert reason() == ("no_worker", "No worker is running.")
    with sessions.begin() as session:
        workers.record_heartbeat(session, "w1", GPU)
    assert reason()[0] == "in_turn"
    update_jobs(sessions, needs={"device": "cuda", "disk": 600 << 30})
    assert reason()[0] == "no_worker"
    assert "a device of the kind cuda and 644,245,094,400 bytes free on the disk" in reason()[1]
    update_jobs(sessions, needs={}, spec_version=SPEC_VERSION + 1)
    assert "a software version that supports its request" in reason()[1]
    update_jobs(sessions, spec_version=SPEC_VERSION)
    with sessions.begin() as session:
        session.execute(update(Worker).values(seen_at=text("now() - interval '1 h'")))
    assert reason()[0] == "no_worker"
