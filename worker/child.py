"""The training process of one job: `python -m worker.child FOLDER PIPE PARENT STORE`. Only a worker starts it.

The process writes messages to the file descriptor PIPE (see `worker.protocol`) and ends when the process PARENT ends.
Over the file descriptor STORE it sends files of formats (see `worker.format_store`).
This program fetches the model from the hub. Then it gives up everything that training does not need and executes
`worker.training`: the network, the token of the operator, and all files but the model, the job's folder and the
programs (`core.infra.sandbox`). SIGTERM ends this program at once, because there is nothing to save.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.infra import sandbox
from core.models import hub_cache
from core.states import Phase
from seft.models.source import Kind, fetch, find
from worker import environment
from worker.hub import retry_hub
from worker.parent_death import exit_with_parent
from worker.protocol import Progressed, Task
from worker.reporting import errors_sent, sender


def main(folder: Path, pipe: int, parent: int, store: int) -> None:
    """Fetch the model of the job whose files are in the folder, and execute the training in the sandbox."""
    exit_with_parent(parent)
    send, task = sender(pipe), Task.read(folder)
    # Loading torch takes seconds; users see the phase meanwhile.
    send(Progressed(phase=Phase.LOADING, progress=0.0, step=task.resume or 0))
    with errors_sent(send), _fetched(task) as fetched:
        task.model_copy(update={"downloaded": fetched or task.downloaded}).write(folder)
        # The files of a commit in the cache are links to files in the folder of the model.
        model = [fetched.parents[1]] if fetched else task.model_roots
        programs = sandbox.code(os.environ, ("core", "seft", "worker"))
        sockets = sandbox.LOCAL_SOCKETS if task.spec.devices == 1 else sandbox.CONNECTING_SOCKETS
        sandbox.confine([*programs, *model], [sandbox.ROOT], writable=[folder.resolve()], sockets=sockets)
        numbers = map(str, (pipe, parent, store))
        command = [sys.executable, "-P", "-m", "worker.training", str(folder), *numbers]
        os.execve(sys.executable, command, environment.of_training(os.environ, folder.resolve()))  # noqa: S606


@contextmanager
def _fetched(task: Task) -> Iterator[Path | None]:
    """Yield the folder of the model in the hub's cache, or None if the model is not one of the hub.

    The lock that protects the model in the cache stays until the process ends, also if it executes another program.
    """
    if task.downloaded is not None:
        yield None
        return
    source = retry_hub(lambda: find(task.spec.model, roots=task.model_roots, revision=task.spec.revision))
    with hub_cache.using(source, task.hub_cache_bytes) as lock:
        if lock is not None:
            os.set_inheritable(lock, True)
        path = retry_hub(lambda: fetch(source))
        yield path if source.kind is Kind.HUB else None


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
