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


def test_running_jobs_keep_their_speed_and_waiting_ones_last_the_recent_mean(
    sessions: Sessions, make_job: MakeJob
) -> None:
    ended, *running = make_job(), make_job(), make_job()
    for _ in range(3):
        claimed(sessions)
    change = text(
        "UPDATE jobs SET status = :status, progress = :progress,"
        " started_at = now() - :spent * interval '1 s', finished_at = now() WHERE id = :id"
    )
    rows = [(ended, "succeeded", 1.0, 80), (running[0], "running", 0.25, 100), (running[1], "running", 0.0, 5)]
    with sessions.begin() as session:
        for job, status, progress, spent in rows:
            session.execute(change, {"id": job, "status": status, "progress": progress, "spent": spent})
        for name in ("one", "two", "three"):
            workers.record_heartbeat(session, name, GPU)
        now = Forecast.now(session, 15)
    assert now.free_in == pytest.approx((0.0, 80.0, 300.0))
    assert now.duration == pytest.approx(80.0)
    with sessions.begin() as session:
        session.execute(text("UPDATE jobs SET estimated_finish = now() + interval '7 s' WHERE progress = 0.25"))
        assert Forecast.now(session, 15).free_in == pytest.approx((0.0, 7.0, 80.0))


@pytest.mark.parametrize("progress", ["5e-324", "'NaN'"])
def test_no_progress_of_a_job_makes_the_start_of_other_jobs_a_number_that_no_page_can_show(
    sessions: Sessions, make_job: MakeJob, progress: str
) -> None:
    make_job()
    claimed(sessions)
    with sessions.begin() as session:
        workers.record_heartbeat(session, "one", GPU)
        session.execute(text(f"UPDATE jobs SET started_at = now() - interval '1 s', progress = {progress}"))
        start = Forecast.now(session, 15).start(1)
    assert start is not None
    assert 0 <= start <= 1e9


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
