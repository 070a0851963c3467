"""When running jobs are expected to end, and waiting jobs to start."""

import pytest
from sqlalchemy import func, select, text

from core import workers
from core.jobs import attempts, forecast
from core.jobs.forecast import Forecast
from core.states import Phase
from core.tables import Job
from tests.core.conftest import GPU, MakeJob, Sessions
from tests.core.jobs.test_attempts import claimed


@pytest.mark.parametrize(
    ("free_in", "duration", "starts"),
    [
        ((), 60.0, [None, None]),
        ((0.0, 40.0), None, [0.0, 40.0, None]),
        ((0.0, 40.0), 60.0, [0.0, 40.0, 60.0, 100.0, 120.0]),
        ((500.0,), 60.0, [500.0, 560.0, 620.0]),
    ],
)
def test_each_worker_starts_the_next_job_when_it_is_free(
    free_in: tuple[float, ...], duration: float | None, starts: list[float | None]
) -> None:
    assert [Forecast(free_in, duration).start(position) for position in range(1, len(starts) + 1)] == starts


def test_a_job_without_a_reported_finish_lasts_the_mean_run_time_of_recent_jobs(
    sessions: Sessions, make_job: MakeJob
) -> None:
    """Pauses, waits and the progress do not count: a resumed job that loads its model has run for long already."""
    ended, *running = make_job(), make_job(), make_job(), make_job()
    for _ in range(4):
        claimed(sessions)
    change = text(
        "UPDATE jobs SET status = :status, progress = :progress, run_seconds = :ran,"
        " started_at = now() - interval '10 hours', finished_at = now() WHERE id = :id"
    )
    with sessions.begin() as session:
        for name in ("one", "two", "three", "four"):
            workers.record_heartbeat(session, name, GPU)
        assert Forecast.now(session, 15).free_in == (), "no job has succeeded yet"
        rows = [(running[0], 0.012, 30), (running[1], 5e-324, 0), (running[2], float("nan"), 100)]
        for job, status, progress, ran in [
            (ended, "succeeded", 1.0, 80),
            *((job, "running", *row) for job, *row in rows),
        ]:
            session.execute(change, {"id": job, "status": status, "progress": progress, "ran": ran})
    with sessions.begin() as session:
        now = Forecast.now(session, 15)
        assert now.free_in == pytest.approx((0.0, 0.0, 50.0, 80.0))
        assert now.duration == pytest.approx(80.0)
        reported = text("UPDATE jobs SET estimated_finish = now() + interval '7 s' WHERE id = :id")
        session.execute(reported, {"id": running[1]})
        assert Forecast.now(session, 15).free_in == pytest.approx((0.0, 0.0, 7.0, 50.0))
        session.execute(text("UPDATE jobs SET run_seconds = 0 WHERE id = :id"), {"id": ended})
        assert Forecast.now(session, 15).duration == pytest.approx(36000), "its run time was not recorded"


def test_only_a_running_job_has_a_finish_and_it_is_never_in_the_past(sessions: Sessions, make_job: MakeJob) -> None:
    def finish(change: str) -> float | None:
        with sessions.begin() as session:
            session.execute(text(f"UPDATE jobs SET {change}"))
            job = session.get_one(Job, job_id)
            at = forecast.finish(job)
            now = session.scalars(select(func.now())).one()
            return None if at is None else (at - now).total_seconds()

    job_id = make_job()
    attempt = claimed(sessions)
    assert finish("priority = 0") is None, "nothing is known yet"
    with sessions.begin() as session:
        attempts.set_progress(session, attempt, phase=Phase.TRAINING, progress=0.5, step=3, remaining=3600)
    assert 0 < (finish("priority = 0") or 0) <= 3600
    assert finish("pausing = true") is None
    assert finish("pausing = false, estimated_finish = now() - interval '1 s'") is None
    with sessions.begin() as session:
        attempts.set_progress(session, attempt, phase=Phase.TRAINING, progress=0.5, step=3, remaining=3600)
        attempts.release(session, attempt)
    assert finish("priority = 0") is None
    claimed(sessions)
    assert finish("priority = 0") is None, "a new attempt does not take over the estimate of the last one"
