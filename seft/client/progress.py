"""Follow a job: a bar on a terminal, a line now and then where nobody looks."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from seft.client.responses import Job, Metric

LINE_SECONDS = 15.0
SPEED_SECONDS = 60.0
"""The time left is told from the speed of this last while."""


class Watchable(Protocol):
    """The part of `seft.client.http.Client` that following needs."""

    def watch(self, job_id: str) -> Iterator[Job]:
        """The job again and again, at last in its final state."""

    def metrics(self, job_id: str, *, after_step: int = -1) -> Iterator[Metric]:
        """What was measured behind a step."""


def follow(service: Watchable, job_id: str, console: Console) -> Job:
    """Watch a job to its end and show phase, step, loss, tokens a second and the time left."""
    step, values = -1, dict[str, float]()
    with (_bar if console.is_terminal else _lines)(console) as tell:
        for job in service.watch(job_id):
            if job["step"] < step:  # those behind it are taken again, or others in their place
                step, values = job["step"], {}
            for metric in service.metrics(job_id, after_step=step):
                step, values = metric["step"], values | metric["values"]
            tell(job, _words(job, values))
    return job


def _words(job: Job, values: dict[str, float]) -> str:
    """As `training  step 7/24  loss 3.412  210 tokens/s`."""
    words = [f"{job['phase'] or job['status']:<10}"]
    if job["step"]:
        words.append(f"step {job['step']}/{job['spec']['repair']['steps']}")
    if "loss" in values:
        words.append(f"loss {values['loss']:.3f}")
    if "tokens_per_second" in values:
        words.append(f"{values['tokens_per_second']:.0f} tokens/s")
    return "  ".join(words)


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[Job, str], None]]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("left"))
    with Progress(*columns, *times, console=console, speed_estimate_period=SPEED_SECONDS) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda job, words: progress.update(task, completed=job["progress"], description=words, refresh=True)


@contextmanager
def _lines(console: Console) -> Iterator[Callable[[Job, str], None]]:
    phase, told = None, 0.0

    def tell(job: Job, words: str) -> None:
        nonlocal phase, told
        if job["phase"] != phase or time.monotonic() - told > LINE_SECONDS:
            phase, told = job["phase"], time.monotonic()
            console.print(f"{job['progress']:4.0%}  {words}", highlight=False)

    yield tell
