"""What a person sees while a job runs."""

import io
from collections.abc import Iterator

from rich.console import Console

from client.answers import Job, Metric
from client.progress import follow

JOB: Job = {
    "id": "job_1",
    "status": "running",
    "reason": None,
    "pausing": False,
    "stopping": False,
    "phase": "training",
    "progress": 0.5,
    "step": 3,
    "attempt": 1,
    "scores": {},
    "measured": None,
    "error": None,
    "spec": {"repair": {"steps": 24}},
    "created_at": "",
    "started_at": None,
    "finished_at": None,
    "updated_at": "",
}


class Scripted:
    """A service with one job and its metrics."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs_to_come = jobs

    def watch(self, job_id: str) -> Iterator[Job]:
        yield from self.jobs_to_come

    def metrics(self, job_id: str, *, after_step: int = -1) -> Iterator[Metric]:
        if after_step < 3:
            yield {"step": 3, "attempt": 1, "values": {"loss": 3.5, "tokens_per_second": 201.4}}


def followed(console: Console, *jobs: Job) -> str:
    assert follow(Scripted(*jobs), "job_1", console)["status"] == jobs[-1]["status"]
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_shows_phase_step_loss_speed_and_time_left() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=140)
    shown = followed(console, JOB, {**JOB, "status": "succeeded", "progress": 1.0})
    for word in ("training", "step 3/24", "loss 3.500", "201 tokens/s", "50%", "left"):
        assert word in shown


def test_nobody_looking_gets_a_line_for_each_phase() -> None:
    console = Console(file=io.StringIO(), width=140)
    last: Job = {**JOB, "status": "succeeded", "phase": None, "progress": 1.0}
    shown = followed(console, JOB, JOB, JOB, last)
    assert [line.split()[:2] for line in shown.splitlines()] == [["50%", "training"], ["100%", "succeeded"]]
