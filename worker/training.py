"""The sandboxed part of a training process: `python -m worker.training FOLDER PIPE PARENT STORE`.

`worker.child` executes it when the model is on this machine. The arguments are the same. If the job asks for several
devices, this process starts one process for each of them (`worker.launch`), and sends no messages itself.
"""

import faulthandler
import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from core.infra import sandbox
from core.states import OUT_OF_MEMORY
from seft.errors import NO_HOST_MEMORY, is_device_memory_full, is_host_memory_full
from seft.parent_process import end_with_parent
from worker.format_store import FormatStore
from worker.protocol import Failed, Message, Task
from worker.reporting import errors_sent, sender

FAILURE_SECONDS = 1.0
"""Seconds between an unexpected error and the end of one of several processes: ten times as long as torch waits between
two looks at the processes."""


def main(folder: Path, pipe: int, parent: int, connection: int) -> None:
    """Run the job whose files are in the folder, and send a message that says how the job ended."""
    end_with_parent(parent)
    # Otherwise Python tests folders by writing to them, so the import of a library fails if the disk is full.
    tempfile.tempdir = str(folder)
    faulthandler.register(signal.SIGUSR2)
    for descriptor in (pipe, connection):
        os.set_inheritable(descriptor, False)
    send, task, store = sender(pipe), Task.read(folder), FormatStore(connection)
    if task.spec.devices == 1:
        run(folder, task, send, store)
        return
    sandbox.leave_network()
    # Imported once before the processes are forked, together with torch and transformers.
    from worker import pipeline  # noqa: F401
    from worker.launch import launch

    # A long message is written in pieces. Pieces of different processes must not be mixed.
    lock = multiprocessing.get_context("fork").Lock()

    def send_in_turn(message: Message) -> None:
        with lock:
            send(message)

    launch(task.spec.devices, partial(_run_one_of_several, folder, task, send_in_turn, store))


def _run_one_of_several(folder: Path, task: Task, send: Callable[[Message], None], store: FormatStore) -> None:
    """Run one process of a job on several devices. If it has no result, exit with 1, which ends all of them.

    When a process ends, its connections close, so the others fail, too. The launcher reports the process whose end it
    sees first. So each process waits after an unexpected error. Meanwhile the launcher sees the end of an earlier one.
    """
    try:
        finished = run(folder, task, send, store)
    except Exception:
        time.sleep(FAILURE_SECONDS)
        raise
    if not finished:
        sys.exit(1)


def run(folder: Path, task: Task, send: Callable[[Message], None], store: FormatStore) -> bool:
    """Run the job or the part of this process. A stop or known error is sent.

    Return whether it was finished before a request to stop. Afterwards SIGTERM ends this process at once. Otherwise a
    process that has finished would ignore it while torch lets it wait for the end of the others.
    """
    stop_signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop_signals.append(number))
    finished = False
    with errors_sent(send):
        finished = _compute(folder, task, send, lambda: bool(stop_signals), store)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return finished and not stop_signals


def _compute(
    folder: Path, task: Task, send: Callable[[Message], None], stopping: Callable[[], bool], store: FormatStore
) -> bool:
    """Run the job or the part of this process. Return whether it was finished."""
    from seft.checkpoint.verify import standby
    from seft.devices import trim_memory
    from worker import launch, replica
    from worker.pipeline import Pipeline

    first = launch.rank() == 0
    try:
        with standby(store) if first else nullcontext(), launch.process_group(task.spec.devices):
            if not first:
                finished = replica.take_part(folder, task)
                # This process waits for the end of the others. Its model is in cycles, so it would stay in memory.
                gc.collect()
                trim_memory()
                return finished
            Pipeline(folder, task, send, stopping, store).run()
    except RuntimeError as error:
        if is_device_memory_full(error):
            send(Failed(user_error=True, code=OUT_OF_MEMORY, message=str(error).splitlines()[0]))
            return False
        if is_host_memory_full(error):
            raise MemoryError(str(error).partition(NO_HOST_MEMORY)[2].strip(" :")) from error
        raise
    return True


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
