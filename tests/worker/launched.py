"""The processes of a job on two devices with scripted work: `python -m tests.worker.launched SCENARIO FOLDER`.

The launcher, the connection of the processes and the handling of errors and signals are real. A scenario names what
happens. Its work takes the place of the pipeline in the first process, and of the replica in the second. The launcher
fails if it asks for CUDA devices.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import ref

import torch

from seft.errors import Cancelled
from seft.repair.processes import broadcast, sum_over_processes
from worker import launch, pipeline, replica, training
from worker.format_store import FormatStore
from worker.protocol import Message, Task

CAUSE, FREED = "the second process has failed", "The model is freed."


class Model:
    """An object that refers to itself, like a model whose `forward` a repair method has replaced."""

    def __init__(self) -> None:
        self.forward = self.describe

    def describe(self) -> str:
        return type(self).__name__


MODELS: list[ref[Model]] = []


class First:
    """The work of the first process."""

    def __init__(
        self,
        folder: Path,
        task: Task,
        send: Callable[[Message], None],
        stopping: Callable[[], bool],
        store: FormatStore,
    ) -> None:
        self.stopping = stopping

    def run(self) -> None:
        broadcast(None)
        if SCENARIO == "finish":
            return
        if SCENARIO in {"error", "kill"}:
            sum_over_processes(torch.ones(10))  # the other process does not take part
        if SCENARIO == "stop after replica":
            time.sleep(1)
        os.kill(os.getppid(), signal.SIGTERM)  # as a worker stops the launcher
        while not self.stopping():
            time.sleep(0.01)
        raise Cancelled


def take_part(folder: Path, task: Task) -> bool:
    """Do the work of the second process."""
    broadcast(None)
    if SCENARIO == "error":
        raise RuntimeError(CAUSE)
    if SCENARIO == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if SCENARIO == "stop before replica":
        time.sleep(1)
    model = Model()
    MODELS.append(ref(model))
    return True


def no_cuda() -> bool:
    """Stand for `torch.cuda.is_available`, which initializes CUDA. No fork can use CUDA after that."""
    assert os.getpid() != LAUNCHER, "The launcher initializes CUDA before it forks."
    return False


def run(task: Task, store: FormatStore) -> None:
    """Run one of the processes. Then the second one prints whether its model is still in memory."""
    training._run_one_of_several(Path(), task, partial(print, flush=True), store)
    for model in MODELS:
        sys.stdout.write(FREED if model() is None else "The model is in memory.")


if __name__ == "__main__":
    SCENARIO, LAUNCHER = sys.argv[1], os.getpid()
    torch.cuda.is_available = no_cuda
    tempfile.tempdir = sys.argv[2]
    pipeline.Pipeline, replica.take_part = First, take_part  # type: ignore[assignment,misc]
    task: Any = SimpleNamespace(spec=SimpleNamespace(devices=2))
    store: Any = None
    launch.launch(2, partial(run, task, store))
