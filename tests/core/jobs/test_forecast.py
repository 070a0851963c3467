"""When waiting jobs are expected to start."""

import pytest
from sqlalchemy import text

from core import workers
from core.jobs.forecast import Forecast
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
        forecast = Forecast.now(session, 15)
    assert forecast.free_in == pytest.approx((0.0, 80.0, 300.0))
    assert forecast.duration == pytest.approx(80.0)
