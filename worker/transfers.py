"""Transfer files between the disk and object storage in a separate thread, so that no heartbeat waits for them.

A transfer is retried while the object storage is unreachable. If that takes too long, the job is paused. If the storage
rejects the request, the transfer fails at once. Rejected credentials count as unreachable: the operator may be changing
them.
"""

import contextvars
import threading
from collections.abc import Callable, Iterable
from functools import partial
from http import HTTPStatus
from pathlib import Path
from queue import Queue
from typing import BinaryIO, TypeVar

import structlog

from core.infra.storage import STORAGE_ERRORS, Part, Storage, code_of, is_outage, status_of
from core.states import Reason
from seft.checkpoint.compact.ordered import ordered
from seft.checkpoint.facts import sha256 as hash_file
from worker.retries import PauseError, retry

UPLOADERS = 2
"""Threads that send the parts of one object.

At most twice this number of parts are queued or being sent, and one more is being filled.
"""
FULL_STATUS, FULL_CODES = 507, frozenset({"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull"})
"""HTTP status and error codes with which an S3 server reports that it is full. Amazon S3 is never full."""

log = structlog.get_logger(__name__)
T = TypeVar("T")


class TransferError(Exception):
    """The object storage rejected a request or returned damaged data, or the attempt has ended."""


class GoneError(TransferError):
    """An object that was stored earlier is missing or damaged."""


class Transfers:
    """A queue of transfers, and the thread that runs them one after the other.

    The owner gives `post`, a function that runs a callable in the owner's thread. The result or error of each
    transfer is handled in that thread. During an upload, `sent` is called with the number of bytes of each piece, in
    any thread.
    """

    def __init__(
        self,
        storage: Storage,
        post: Callable[[Callable[[], None]], None],
        sent: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._storage, self._post, self._sent = storage, post, sent
        self._closed = threading.Event()
        self._work: Queue[Callable[[], None] | None] = Queue()
        # The thread logs with the owner's logging context.
        self._thread = threading.Thread(target=contextvars.copy_context().run, args=[self._run], daemon=True)
        self._thread.start()
        self.pending = 0

    def submit(self, transfer: Callable[[], T], then: Callable[[T], None]) -> None:
        """Run `transfer` in the transfer thread.

        Then, in the owner's thread, call `then` with its result or raise its error.
        """

        def deliver(handle: Callable[[], None]) -> None:
            self.pending -= 1
            handle()

        def work() -> None:
            try:
                result = transfer()
            except Exception as error:
                self._post(lambda error=error: deliver(lambda: _raise(error)))  # type: ignore[misc]
            else:
                self._post(lambda: deliver(lambda: then(result)))

        self.pending += 1
        self._work.put(work)

    def close(self, last: Callable[[], None], timeout: float) -> None:
        """End the transfers, and then run `last` in the transfer thread. Wait up to `timeout` seconds for its end.

        The current and the waiting transfers raise TransferError before their next request. Deletions still run.
        """
        self._closed.set()
        self._work.put(last)
        self._work.put(None)
        self._thread.join(timeout)

    def download(self, key: str, path: Path, sha256: str) -> None:
        """Download an object to a file.

        Raises GoneError if the object is missing, or if its SHA-256 differs from `sha256` after two downloads.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):  # the first transfer may have damaged the content
            self._retry(lambda: self._storage.download(key, path))
            if (actual := hash_file(path)) == sha256:
                return
        raise GoneError(f"The object {key} must have the sha256 {sha256}; it has {actual}. It is damaged.")

    def upload(self, source: Callable[[], BinaryIO], key: str) -> None:
        """Upload a file as an object. Each try opens the file with `source`."""

        def send() -> None:
            with source() as file:
                self._storage.upload(file, key, self._sent)

        try:
            self._retry(send)
        except GoneError:  # the storage has deleted the parts
            self._retry(send)

    def upload_parts(self, parts: Iterable[bytes], key: str) -> None:
        """Upload an object in parts, while `parts` yields them. Each part is retried separately.

        If `parts` raises an error or the upload fails, no object is created, and the parts in storage are deleted.
        """
        upload, context = self._retry(lambda: self._storage.begin_upload(key)), contextvars.copy_context()

        def send(part: tuple[int, bytes]) -> Part:
            return context.copy().run(self._retry, partial(self._storage.upload_part, key, upload, *part))

        try:
            sent = enumerate(ordered(send, enumerate(parts, 1), UPLOADERS), 1)
            self._retry(partial(self._storage.finish_upload, key, upload, dict(sent)))
        except BaseException:
            try:
                self._storage.abort_upload(key, upload)
            except STORAGE_ERRORS as error:
                log.warning("storage.not_aborted", key=key, error=str(error))
            raise

    def size(self, key: str) -> int:
        """Return the size of an object in bytes. Raises GoneError if it is missing."""
        return self._retry(lambda: self._storage.size(key))

    def read_range(self, key: str, begin: int, size: int) -> bytes:
        """Return `size` bytes of an object from offset `begin`. Raises GoneError if the object is shorter."""
        content = self._retry(lambda: self._storage.read_range(key, begin, size))
        if len(content) != size:
            raise GoneError(f"The object {key} must have {size} bytes from {begin}; it has {len(content)}.")
        return content

    def delete(self, keys: list[str]) -> None:
        """Delete objects. Errors are only logged, because the cleanup after the job deletes the objects that remain."""
        try:
            self._storage.delete(keys)
        except STORAGE_ERRORS as error:
            log.warning("storage.not_deleted", keys=keys, error=str(error))

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def check(self) -> None:
        """Raise TransferError if `close` was called, so that no further request is started."""
        if self._closed.is_set():
            raise TransferError("the attempt has ended")

    def pause(self, seconds: float) -> None:
        """Wait before the next try. Raises TransferError as soon as `close` was called."""
        self._closed.wait(seconds)
        self.check()

    def _retry(self, action: Callable[[], T]) -> T:
        """Return the result of `action`, which is repeated during a short outage.

        Raises PauseError if the storage is full or unreachable for too long, GoneError if an object is missing, and
        TransferError if the storage rejects the request.
        """
        self.check()
        try:
            return retry(action, _is_temporary, self.pause)
        except STORAGE_ERRORS as error:
            log.warning("storage.failed", error=str(error))
            if _is_full(error):
                raise PauseError(Reason.STORAGE_FULL) from error
            if is_outage(error):
                raise PauseError(Reason.STORAGE_UNREACHABLE) from error
            if status_of(error) == HTTPStatus.NOT_FOUND:
                raise GoneError("An object of the job is missing in the object storage.") from error
            raise TransferError("The object storage rejected a request of the worker.") from error


def _is_temporary(error: Exception) -> bool:
    """Return whether the request is repeated after this error. If the storage is full, the job is paused instead."""
    return isinstance(error, STORAGE_ERRORS) and is_outage(error) and not _is_full(error)


def _is_full(error: Exception) -> bool:
    return status_of(error) == FULL_STATUS or code_of(error) in FULL_CODES


def _raise(error: Exception) -> None:
    raise error
