"""What moves between scratch folder and object storage, in a thread of its own, so that no heartbeat waits for it.

A storage that is away for a while is waited for; one that refuses is an error at once. Knows nothing of jobs' states.
"""

import contextvars
import hashlib
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from queue import Queue
from typing import TypeVar

import structlog
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

from core.infra.storage import Storage

PATIENCE_SECONDS = 600.0
"""An object is tried again for so long while the storage does not answer."""
LONGEST_PAUSE = 10.0
REFUSALS = frozenset({400, 401, 403, 413})
FULL_STATUS, FULL = 507, frozenset({"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull"})
"""How servers that speak S3 say that there is no room; Amazon's always has some."""

log = structlog.get_logger(__name__)
T = TypeVar("T")


class TransferError(Exception):
    """Object storage refused, stayed away too long, or gave other bytes than it was given."""


class GoneError(TransferError):
    """What was stored is not there any more, or damaged."""


class StorageFullError(TransferError):
    """Object storage has no room."""


class Transfers:
    """A queue of transfers and the thread that does them, one after the other.

    `post` hands a callable to the owner's thread: the result of each transfer, or its error, is told there.
    """

    def __init__(self, storage: Storage, post: Callable[[Callable[[], None]], None]) -> None:
        self._storage, self._post = storage, post
        self._closed = threading.Event()
        self._work: Queue[Callable[[], None] | None] = Queue()
        # The owner's logging context goes with it.
        self._thread = threading.Thread(target=contextvars.copy_context().run, args=[self._run], daemon=True)
        self._thread.start()
        self.pending = 0

    def submit(self, transfer: Callable[[], T], then: Callable[[T], None]) -> None:
        """Do `transfer` in the thread; afterwards `then`, or the raise of what it raised, in the owner's."""

        def told(tell: Callable[[], None]) -> None:
            self.pending -= 1
            tell()

        def work() -> None:
            try:
                result = transfer()
            except Exception as error:
                self._post(lambda error=error: told(lambda: _raise(error)))  # type: ignore[misc]
            else:
                self._post(lambda: told(lambda: then(result)))

        self.pending += 1
        self._work.put(work)

    def close(self, last: Callable[[], None], patience: float) -> None:
        """Drop what waits, do `last` in the thread after what is being done, and wait for it so long."""
        self._closed.set()
        self._work.put(last)
        self._work.put(None)
        self._thread.join(patience)

    def download(self, key: str, path: Path, sha256: str) -> None:
        """An object into a file, which must have this hash."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._patiently(lambda: self._storage.download(key, path))
        if (found := hash_file(path)) != sha256:
            raise GoneError(f"{key} must have the sha256 {sha256}; it has {found}. The stored object is damaged.")

    def upload(self, path: Path, key: str) -> None:
        """A file into an object."""
        self._patiently(lambda: self._storage.upload(path, key))

    def delete(self, keys: list[str]) -> None:
        """Objects that nobody will ask for again. Those that stay for now go when the job has ended."""
        try:
            self._storage.delete(keys)
        except (BotoCoreError, ClientError) as error:
            log.warning("storage.not_deleted", keys=keys, error=str(error))

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def check(self) -> None:
        """TransferError once it is closed: what is begun now would be for nobody."""
        if self._closed.is_set():
            raise TransferError("the attempt has ended")

    def _patiently(self, action: Callable[[], None]) -> None:
        deadline, pause = time.monotonic() + PATIENCE_SECONDS, 0.2
        while True:
            self.check()
            try:
                return action()
            except (BotoCoreError, Boto3Error, ClientError) as error:
                if _full(error):
                    raise StorageFullError(f"object storage: {error}") from error
                if _status(error) == HTTPStatus.NOT_FOUND:
                    raise GoneError(f"object storage: {error}") from error
                if _status(error) in REFUSALS or time.monotonic() > deadline:
                    raise TransferError(f"object storage: {error}") from error
                log.warning("storage.away", error=str(error))
            self._closed.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def hash_file(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _status(error: Exception) -> int | None:
    """Of what the storage answered; None where it did not."""
    answer = _answer(error)
    return None if answer is None else answer.response["ResponseMetadata"]["HTTPStatusCode"]


def _full(error: Exception) -> bool:
    answer = _answer(error)
    code = answer.response.get("Error", {}).get("Code") if answer else None
    return _status(error) == FULL_STATUS or code in FULL


def _answer(error: Exception) -> ClientError | None:
    # An upload in parts hides the answer behind an error of its own.
    answer = error if isinstance(error, ClientError) else error.__context__
    return answer if isinstance(answer, ClientError) else None


def _raise(error: Exception) -> None:
    raise error
