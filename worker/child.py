"""The training process of one job: `python -m worker.child FOLDER PIPE PARENT`. Only a worker starts it.

The process writes messages to the file descriptor PIPE (see `worker.protocol`) and ends when the process PARENT ends.
Python prints an unexpected error to the output. The worker reports the last lines of that output.
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
from worker.parent_death import exit_with_parent
from worker.phases import Phases
from worker.protocol import Failed, Message, NoDiskSpace, Progressed, Stopped, Task, encode

USER_ERRORS = (ConfigError, DataError, EvaluateError, PruneError, RecordError, SourceError, TrainError)
"""Types of errors that a retry would raise again. The one exception is an unreachable model hub."""


def main(folder: Path, pipe: int, parent: int) -> None:
    """Run the job whose files are in the folder, and send a message that says how the job ended."""
    exit_with_parent(parent)
    os.set_inheritable(pipe, False)
    tracing.configure("training")
    stop_signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop_signals.append(number))

    def write(message: Message) -> None:
        line = encode(message)
        while line:
            line = line[os.write(pipe, line) :]

    say, task = Phases(write), Task.read(folder)
    # Loading torch takes seconds; users see the phase meanwhile.
    say(Progressed(phase=Phase.LOADING, progress=0.0, step=task.resume or 0))
    try:
        run(folder, task, say, lambda: bool(stop_signals))
    except Cancelled:
        say(Stopped())
    except SeftError as error:
        user_error = isinstance(error, USER_ERRORS) and error.code != "hub_unreachable"
        say(Failed(user_error=user_error, code=error.code, message=str(error)))
    except MemoryError as error:
        say(Failed(user_error=True, code=OUT_OF_MEMORY, message=f"The machine ran out of memory. {error}"))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        say(NoDiskSpace(message=str(error), needed=getattr(error, "needed", None)))


def run(folder: Path, task: Task, say: Callable[[Message], None], stopping: Callable[[], bool]) -> None:
    """Run the job itself. This is a function of its own because it imports torch."""
    import torch

    from worker.pipeline import Pipeline

    try:
        Pipeline(folder, task, say, stopping).run()
    except torch.OutOfMemoryError as error:
        say(Failed(user_error=True, code=OUT_OF_MEMORY, message=str(error).splitlines()[0]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
