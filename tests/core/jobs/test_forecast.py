"""When a waiting job may start."""

import pytest
from sqlalchemy import text

from core import workers
from core.jobs.forecast import Forecast
from tests.core.conftest import GPU, MakeJob, Sessions
from tests.core.jobs.test_attempts import claimed


@pytest.mark.parametrize(
    ("free", "lasts", "starts"),
    [
        ((), 60.0, [None, None]),
        ((0.0, 40.0), None, [0.0, 40.0, None]),
        ((0.0, 40.0), 60.0, [0.0, 40.0, 60.0, 100.0, 120.0]),
        ((500.0,), 60.0, [500.0, 560.0, 620.0]),
    ],
)
def test_each_worker_takes_the_next_job_when_it_is_free(
    free: tuple[float, ...], lasts: float | None, starts: list[float | None]
) -> None:
    assert [Forecast(free, lasts).start(place) for place in range(1, len(starts) + 1)] == starts


def test_running_jobs_go_on_as_they_did_and_others_last_as_jobs_did(sessions: Sessions, make_job: MakeJob) -> None:
    done, *running = make_job(), make_job(), make_job()
    for _ in range(3):
        claimed(sessions)
    change = text(
        "UPDATE jobs SET status = :status, progress = :progress,"
        " started_at = now() - :spent * interval '1 s', finished_at = now() WHERE id = :id"
    )
    lives = [(done, "succeeded", 1.0, 80), (running[0], "running", 0.25, 100), (running[1], "running", 0.0, 5)]
    with sessions.begin() as session:
        for job, status, progress, spent in lives:
            session.execute(change, {"id": job, "status": status, "progress": progress, "spent": spent})
        for name in ("one", "two", "three"):
            workers.record_heartbeat(session, name, GPU)
        found = Forecast.now(session, 15)
    assert found.free == pytest.approx((0.0, 80.0, 300.0))
    assert found.lasts == pytest.approx(80.0)
