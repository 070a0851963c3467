"""The progress display of a running job."""

import io
import re
from collections.abc import Iterator

import pytest
from rich.console import Console

from seft.client import progress
from seft.client.progress import follow
from seft.client.responses import Job, Metric

JOB: Job = {
    "id": "job_1",
    "status": "running",
    "reason": None,
    "pausing": False,
    "stopping": False,
    "phase": "training",
    "progress": 0.5,
    "estimated_finish": None,
    "step": 3,
    "attempt": 1,
    "dtype": "float32",
    "scores": {},
    "measured": None,
    "error": None,
    "spec": {"repair": {"steps": 24}},
    "created_at": "",
    "started_at": None,
    "finished_at": None,
    "updated_at": "2026-01-01T12:00:00+00:00",
}


class Scripted:
    """A service with one job and its metrics. `watch` yields the given states of the job."""

    def __init__(self, *jobs: Job) -> None:
        self.states = jobs

    def watch(self, job_id: str) -> Iterator[Job]:
        yield from self.states

    def metrics(self, job_id: str, *, after_step: int = -1) -> Iterator[Metric]:
        rows: list[Metric] = [{"step": 3, "attempt": 1, "values": {"loss": 3.5, "tokens_per_second": 201.4}}]
        yield from (row for row in rows if row["step"] > after_step)


class Restarted(Scripted):
    """From the third call of `metrics`, training has restarted. Its first step is measured from the fourth call on."""

    calls = 0

    def metrics(self, job_id: str, *, after_step: int = -1) -> Iterator[Metric]:
        self.calls += 1
        if self.calls < 3:
            yield from super().metrics(job_id, after_step=after_step)
        elif self.calls > 3 and after_step < 1:
            yield {"step": 1, "attempt": 2, "values": {"loss": 9.5}}


def output_of(console: Console, *jobs: Job) -> str:
    assert follow(Scripted(*jobs), "job_1", console)["status"] == jobs[-1]["status"]
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("finish", "left"),
    [
        ("2026-01-01T12:00:20+00:00", "about 20 s left"),
        ("2026-01-01T12:11:30Z", "about 12 min left"),
        ("2026-01-01T15:01:00+00:00", "about 3 h 01 min left"),
        ("2026-01-04T15:01:00+00:00", "about 3 d 3 h left"),
    ],
)
def test_a_terminal_shows_phase_step_loss_speed_and_time_left(
    finish: str, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    timed: Job = {**JOB, "estimated_finish": finish}
    shown = output_of(console, timed, {**JOB, "status": "succeeded", "progress": 1.0})
    for word in ("training", "step 3/24", "loss 3.500", "201 tokens/s", "50%", left):
        assert word in shown


def test_no_time_is_shown_while_it_is_unknown() -> None:
    console = Console(file=io.StringIO(), width=140)
    assert "left" not in output_of(console, JOB, {**JOB, "status": "succeeded", "progress": 1.0})


def test_without_a_terminal_each_phase_is_one_line() -> None:
    console = Console(file=io.StringIO(), width=140)
    last: Job = {**JOB, "status": "succeeded", "phase": None, "progress": 1.0}
    shown = output_of(console, JOB, JOB, JOB, last)
    assert [line.split()[:2] for line in shown.splitlines()] == [["50%", "training"], ["100%", "succeeded"]]


class Resumed:
    """A job whose first attempt was lost at step 1000. The second one resumed at step 800.

    Each step has its own loss. When the job reaches a step, the metrics of this step are not written yet.
    """

    def __init__(self, *steps: int) -> None:
        self.steps, self.fetched = steps, list[int]()
        self.rows: dict[int, Metric] = {}
        self.write(1, 1000, 1)

    def write(self, first: int, last: int, attempt: int) -> None:
        self.rows |= {
            step: {"step": step, "attempt": attempt, "values": {"loss": step + attempt / 10}}
            for step in range(first, last + 1)
        }

    def watch(self, job_id: str) -> Iterator[Job]:
        for step in self.steps:
            self.write(801, step - 1, 2)
            yield {**JOB, "attempt": 2, "step": step, "spec": {"repair": {"steps": 2000}}}

    def metrics(self, job_id: str, *, after_step: int = -1) -> Iterator[Metric]:
        for step in sorted(self.rows):
            if step > after_step:
                self.fetched.append(step)
                yield self.rows[step]


def test_values_of_a_lost_attempt_are_not_shown_after_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", -1.0)
    console = Console(file=io.StringIO(), width=140)
    follow(service := Resumed(800, 801, 802, 803, 990, 1005), "job_1", console)
    assert isinstance(console.file, io.StringIO)
    losses = re.findall(r"step (\d+)/2000(?:  loss (\S+))?", console.file.getvalue())
    assert losses == [
        *(("800", ""), ("801", ""), ("802", "801.200"), ("803", "802.200")),
        *(("990", "989.200"), ("1005", "1004.200")),
    ]
    assert min(service.fetched) == 800
    assert len(service.fetched) < 230, "only the steps after the last one that is known"


def test_metrics_of_a_lost_training_are_not_shown_after_a_restart() -> None:
    console = Console(file=io.StringIO(), width=140)
    restarted: Job = {**JOB, "attempt": 2, "step": 0, "phase": "loading"}
    first: Job = {**restarted, "step": 1, "phase": "training"}
    follow(Restarted(JOB, JOB, restarted, first), "job_1", console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue().splitlines()
    assert [("loss" in line, "loss 9.500" in line) for line in shown] == [(True, False), (False, False), (True, True)]
