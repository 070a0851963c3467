"""Base class of the background threads, which poll the database for due work as long as the process runs."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from typing_extensions import override

POLL_SECONDS = 1.0
"""Seconds between two polls if nothing was due."""

log = structlog.get_logger(__name__)


class Poller(threading.Thread, ABC):
    """A daemon thread that polls for due work. Errors are logged and do not end it.

    Several processes have a thread of the same kind. Rows are claimed, so no two threads process the same row.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)

    @override
    def run(self) -> None:
        while True:
            count = 0
            try:
                count = self.poll()
            except Exception as error:
                log.warning(f"{self.name}.failed", error=str(error))
            if not count:
                time.sleep(POLL_SECONDS)

    @abstractmethod
    def poll(self) -> int:
        """Process due work and return the number of processed items. If it returns 0, the thread pauses."""


@contextmanager
def renewed(renew: Callable[[], object], seconds: float, name: str) -> Iterator[None]:
    """Call `renew` every `seconds` seconds in a thread while the `with` block runs. Errors are logged.

    A claim of a row is a lease. Work that takes longer than the lease renews it in this way.
    """
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(seconds):
            try:
                renew()
            except Exception as error:
                log.warning(f"{name}.lease", error=str(error))

    thread = threading.Thread(target=repeat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
