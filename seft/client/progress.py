"""Shows the progress of a job: as a bar on a terminal, else as a line from time to time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from seft.client.responses import Job, Metric
from seft.report import about

LINE_SECONDS = 15.0


class Watchable(Protocol):
    """Interface with the methods of `seft.client.Client` that `follow` needs."""

    def watch(self, job_id: str) -> Iterator[Job]:
        """Yield the job now and after each change, until it has ended."""

    def metrics(self, job_id: str, *, after_step: int = -1) -> Iterator[Metric]:
        """List the metrics of the steps after `after_step`."""


def follow(service: Watchable, job_id: str, console: Console) -> Job:
    """Watch a job until it ends, and show its phase, step, loss, speed and remaining time. Returns the ended job."""
    step, values = None, dict[str, float]()
    with (_bar if console.is_terminal else _lines)(console) as show:
        for job in service.watch(job_id):
            if step is None:  # only the newest values are shown
                step = job["step"] - 1
            elif job["step"] < step:  # a new attempt repeats the later steps
                step, values = job["step"], {}
            for metric in service.metrics(job_id, after_step=step):
                if metric["step"] > job["step"]:
                    break
                if metric["attempt"] == job["attempt"]:  # until a step is trained again, its metrics are old
                    step, values = metric["step"], values | metric["values"]
            show(job, _words(job, values))
    return job


def _words(job: Job, values: dict[str, float]) -> str:
    """Return a line such as `training step 7/24 loss 3.412 210 tokens/s`."""
    words = [f"{job['phase'] or job['status']:<10}"]
    if job["step"]:
        words.append(f"step {job['step']}/{job['spec']['repair']['steps']}")
    if "loss" in values:
        words.append(f"loss {values['loss']:.3f}")
    if "tokens_per_second" in values:
        words.append(f"{values['tokens_per_second']:.0f} tokens/s")
    if job["estimated_finish"] is not None:
        words.append(f"{_left(job['estimated_finish'], job['updated_at'])} left")
    return "  ".join(words)


def _left(finish: str, now: str) -> str:
    """Return the time between two moments in words. Both are of the service's clock, which can differ from ours."""
    return about((datetime.fromisoformat(finish) - datetime.fromisoformat(now)).total_seconds())


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[Job, str], None]]:
    columns = (
        SpinnerColumn(),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda job, words: progress.update(task, completed=job["progress"], description=words, refresh=True)


@contextmanager
def _lines(console: Console) -> Iterator[Callable[[Job, str], None]]:
    phase, printed_at = None, 0.0

    def show(job: Job, words: str) -> None:
        nonlocal phase, printed_at
        if job["phase"] != phase or time.monotonic() - printed_at > LINE_SECONDS:
            phase, printed_at = job["phase"], time.monotonic()
            console.print(f"{job['progress']:4.0%}  {words}", highlight=False)

    yield show
