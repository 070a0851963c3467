"""`python -m worker.child FOLDER PIPE OWNER`: the training process of one job. Started by its worker alone.

It says what it does on PIPE (see `worker.protocol`) and ends with OWNER. An error that it does not understand is left
to Python, which prints it: the worker tells the end of that output.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from core.infra import tracing
from core.states import OUT_OF_MEMORY, Phase
from seft.errors import (
    Cancelled,
    ConfigError,
    DataError,
    EvaluateError,
    PruneError,
    RecordError,
    SeftError,
    SourceError,
    TrainError,
)
from worker.phases import Phases
from worker.protocol import Failed, Message, NoDiskSpace, Progressed, Stopped, Task, encode
from worker.tether import tether

HOPELESS = (ConfigError, DataError, EvaluateError, PruneError, RecordError, SourceError, TrainError)
"""Errors that come again when the same is tried again. A hub that is away is none."""


def main(folder: Path, pipe: int, owner: int) -> None:
    """Do the job in the folder, and say how it ended."""
    tether(owner)
    os.set_inheritable(pipe, False)
    tracing.configure("training")
    told_to_stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told_to_stop.append(number))

    def write(message: Message) -> None:
        line = encode(message)
        while line:
            line = line[os.write(pipe, line) :]

    say, task = Phases(write), Task.read(folder)
    # Loading torch takes seconds, and somebody may be watching.
    say(Progressed(phase=Phase.LOADING, progress=0.0, step=task.resume or 0))
    try:
        run(folder, task, say, lambda: bool(told_to_stop))
    except Cancelled:
        say(Stopped())
    except SeftError as error:
        hopeless = isinstance(error, HOPELESS) and error.code != "hub_unreachable"
        say(Failed(user_error=hopeless, code=error.code, message=str(error)))
    except MemoryError as error:
        say(Failed(user_error=True, code=OUT_OF_MEMORY, message=f"The machine's memory did not do. {error}"))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        say(NoDiskSpace(message=str(error), needed=getattr(error, "needed", None)))


def run(folder: Path, task: Task, say: Callable[[Message], None], stopping: Callable[[], bool]) -> None:
    """The part that needs torch."""
    import torch

    from worker.pipeline import Pipeline

    try:
        Pipeline(folder, task, say, stopping).run()
    except torch.OutOfMemoryError as error:
        say(Failed(user_error=True, code=OUT_OF_MEMORY, message=str(error).splitlines()[0]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
