"""Time estimates from the durations of earlier jobs."""

import pytest
from sqlalchemy import text

from core.capability import UNLIMITED, Capability
from core.estimate import timings
from core.jobs import attempts
from core.specs import JobSpec
from core.states import Phase
from tests.core.conftest import GPU, MakeJob, Sessions

MEASURED = {"model": {"weights": 1000}, "linears": {"weights": 800}, "grown_zeros": 0}
PHASES = [
    Phase.EVALUATING,
    Phase.WRITING,
    Phase.PRUNING,
    Phase.EVALUATING,
    Phase.TRAINING,
    Phase.EXPORTING,
    Phase.UPLOADING,
]


def run(sessions: Sessions, has: Capability) -> None:
    """Run a job that takes ten seconds in each phase."""
    with sessions.begin() as session:
        attempt = attempts.claim(session, "w1", 60, capability=has)
        assert attempt is not None
    for phase in PHASES:
        with sessions.begin() as session:
            attempts.set_progress(session, attempt, phase=phase, progress=0.5, step=0)
    with sessions.begin() as session:
        attempts.publish(session, attempt, step=1, prefix="", sha256="", files=[], scores={}, measured=MEASURED)
        session.execute(
            text(
                "UPDATE job_events SET created_at = '2026-01-01'::timestamptz + place * interval '10 s' FROM"
                " (SELECT id, row_number() OVER (ORDER BY id) AS place FROM job_events WHERE job_id = :job) AS ours"
                " WHERE ours.id = job_events.id"
            ),
            {"job": attempt.job_id},
        )


def test_the_estimate_scales_the_time_of_earlier_jobs_on_the_same_kind_of_worker(
    sessions: Sessions, spec: JobSpec, make_job: MakeJob
) -> None:
    make_job()
    run(sessions, GPU)
    with sessions.begin() as session:
        measured = timings.load(session)
    same = timings.count_work(spec, 1000, 800)
    assert timings.estimate_seconds(measured, GPU.device_name, same) == pytest.approx(80)
    longer = spec.model_copy(update={"repair": spec.repair.model_copy(update={"steps": 3 * spec.repair.steps})})
    work = timings.count_work(longer, 1000, 800)
    assert timings.estimate_seconds(measured, GPU.device_name, work) == pytest.approx(80 + 20)
    work = timings.count_work(spec, 2000, 1600)
    assert timings.estimate_seconds(measured, GPU.device_name, work) == pytest.approx(160)
    assert timings.estimate_seconds(measured, "another kind", same) is None
    other = spec.model_copy(update={"repair": spec.repair.model_copy(update={"method": "spp"})})
    work = timings.count_work(other, 1000, 800)
    assert timings.estimate_seconds(measured, GPU.device_name, work) is None


def test_a_gradual_job_has_no_work_of_pruning_and_two_evaluations(spec: JobSpec) -> None:
    gradual = JobSpec.model_validate(
        {**spec.model_dump(), "prune": {"schedule": "gradual"}, "repair": {"density": "all"}}
    )
    before, after = (timings.count_work(each, 1000, 800) for each in (spec, gradual))
    assert {task.phase for task in before} - {task.phase for task in after} == {Phase.PRUNING}
    evaluating = timings.Task(Phase.EVALUATING)
    assert after[evaluating] == pytest.approx(before[evaluating] * 2 / 3)
    assert not {task for task in before if task.phase is Phase.TRAINING} & set(after), "methods differ in speed"


def test_jobs_on_unknown_machines_and_stopped_jobs_are_not_measured(sessions: Sessions, make_job: MakeJob) -> None:
    make_job()
    run(sessions, UNLIMITED)
    make_job()
    with sessions.begin() as session:
        session.execute(text("UPDATE jobs SET stopping = true WHERE status = 'queued'"))
    run(sessions, GPU)
    with sessions.begin() as session:
        assert timings.load(session) == {}
