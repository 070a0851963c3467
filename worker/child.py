"""The training process of one job: `python -m worker.child FOLDER PIPE PARENT STORE`. Only a worker starts it.

The process writes messages to the file descriptor PIPE (see `worker.protocol`) and ends when the process PARENT ends.
It sends files of formats to the file descriptor STORE (see `worker.format_store`).

This program fetches the model from the hub. Then it confines itself (`core.infra.sandbox`) and executes
`worker.training`. The training has no network and no token of the operator. It can access only the model, the
job's folder, the programs and system files. SIGTERM ends this program at once, because there is nothing to save.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from core.infra import folders, sandbox
from core.models import hub_cache
from core.models.hub_cache import CacheFullError
from core.states import Phase
from seft.errors import DISK_FULL
from seft.models.source import Kind, fetch, find
from worker import environment
from worker.parent_death import exit_with_parent
from worker.progress import Shares
from worker.protocol import Progressed, Task
from worker.reporting import errors_sent, sender
from worker.retries import retry_hub

REPORT_SECONDS = 60.0
"""Seconds between two reports that a download makes progress. The worker ends a process that is silent for long."""


def main(folder: Path, pipe: int, parent: int, store: int) -> None:
    """Fetch the model of the job whose files are in the folder, and execute the training in the sandbox."""
    exit_with_parent(parent)
    send, task = sender(pipe), Task.read(folder)
    loading = make_loading(task)
    # Loading torch takes seconds; users see the phase meanwhile.
    send(loading)
    with errors_sent(send), ExitStack() as held:
        fetched = fetch_model(task, held, lambda: send(loading))
        task.model_copy(update={"downloaded": fetched or task.downloaded}).write(folder)
        model = files_of(fetched) if fetched else task.model_roots
        programs = sandbox.code(os.environ, ("core", "seft", "worker"))
        sockets = sandbox.LOCAL_SOCKETS if task.spec.devices == 1 else sandbox.CONNECTING_SOCKETS
        sandbox.confine([*programs, *model], [sandbox.ROOT], writable=[folder.resolve()], sockets=sockets)
        numbers = map(str, (pipe, parent, store))
        command = [sys.executable, "-P", "-m", "worker.training", str(folder), *numbers]
        os.execve(sys.executable, command, environment.of_training(os.environ, folder.resolve()))  # noqa: S606


def files_of(commit: Path) -> list[Path]:
    """Return the folder of a model in the cache, and its files outside of this folder.

    The files of a commit are links to files in the folder of the model. Other programs that use the same cache can
    also have stored them in a folder that several models share.
    """
    folder = commit.parents[1].resolve()
    files = {link.resolve() for link in commit.rglob("*")}
    return [folder, *sorted(file for file in files if not file.is_relative_to(folder))]


def make_loading(task: Task) -> Progressed:
    """Return the message that the job loads its model. Its progress is that of the state from which it resumes."""
    return Progressed(phase=Phase.LOADING, progress=Shares(task.spec).reached(task.resume), step=task.resume or 0)


def fetch_model(task: Task, held: ExitStack, report: Callable[[], None]) -> Path | None:
    """Fetch a hub model into the cache and return its folder there.

    Return None if the model is local, or if the worker has downloaded it. `held` gets the lock that protects the model
    in the cache. A program that this process executes keeps the lock. `report` is called regularly while the download
    makes progress. Raises SourceError if the model cannot be fetched, and CacheFullError if the disk of the cache is
    full.
    """
    if task.downloaded is not None:
        return None
    source = retry_hub(lambda: find(task.spec.model, roots=task.model_roots, revision=task.spec.revision))
    try:
        lock = held.enter_context(hub_cache.using(source, task.hub_cache_bytes))
        if lock is not None:
            os.set_inheritable(lock, True)
        with _growth_reported(hub_cache.folder_of(source), report):
            commit = hub_cache.folder_of(source) / "snapshots" / str(source.revision)
            path = retry_hub(lambda: fetch(source), folder=commit)
    except OSError as error:
        if error.errno not in DISK_FULL or isinstance(error, CacheFullError):
            raise
        raise CacheFullError(f"The download of {source.reference} failed: {error}.") from error
    return path if source.kind is Kind.HUB else None


@contextmanager
def _growth_reported(folder: Path, report: Callable[[], None]) -> Iterator[None]:
    """During the `with` block, call `report` in another thread every `REPORT_SECONDS` if the folder's size has changed.

    The thread has ended when the block ends. So its messages are not mixed with later ones.
    """
    ended, reported = threading.Event(), folders.size(folder)

    def watch() -> None:
        nonlocal reported
        while not ended.wait(REPORT_SECONDS):
            if (size := folders.size(folder)) != reported:
                reported = size
                report()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
