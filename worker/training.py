"""The sandboxed part of a training process: `python -m worker.training FOLDER PIPE PARENT`.

`worker.child` executes it when the model is on this machine. The arguments are the same.
"""

import faulthandler
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from core.states import OUT_OF_MEMORY
from seft.parent_process import end_with_parent
from worker.protocol import Failed, Message, Task
from worker.reporting import errors_sent, sender


def main(folder: Path, pipe: int, parent: int) -> None:
    """Run the job whose files are in the folder, and send a message that says how the job ended."""
    end_with_parent(parent)
    # Otherwise Python tests whether it can write there, and the import of a library fails if the disk is full.
    tempfile.tempdir = str(folder)
    faulthandler.register(signal.SIGUSR2)
    os.set_inheritable(pipe, False)
    stop_signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop_signals.append(number))
    send = sender(pipe)
    with errors_sent(send):
        run(folder, Task.read(folder), send, lambda: bool(stop_signals))


def run(folder: Path, task: Task, send: Callable[[Message], None], stopping: Callable[[], bool]) -> None:
    """Run the job itself. This is a function of its own because it imports torch."""
    import torch

    from seft.checkpoint.verify import standby
    from worker.pipeline import Pipeline

    try:
        with standby():
            Pipeline(folder, task, send, stopping).run()
    except torch.OutOfMemoryError as error:
        send(Failed(user_error=True, code=OUT_OF_MEMORY, message=str(error).splitlines()[0]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
