"""The base of the background threads: poll the database for due work, for as long as the process lives."""

import threading
import time
from abc import ABC, abstractmethod

import structlog
from typing_extensions import override

POLL_SECONDS = 1.0
"""Seconds between two polls while nothing is due."""
CLEANUP_SECONDS = 3600.0
"""Seconds between two deletions of old rows."""

log = structlog.get_logger(__name__)


class Poller(threading.Thread, ABC):
    """A daemon thread of an API process. No error ends it; every process has one, and they share the work by claims."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)

    @override
    def run(self) -> None:
        idle, cleaned = threading.Event(), time.monotonic()
        while True:
            count = 0
            try:
                count = self.poll()
                if time.monotonic() > cleaned + CLEANUP_SECONDS:
                    cleaned = time.monotonic()
                    self.clean_up()
            except Exception as error:
                log.warning(f"{self.name}.failed", error=str(error))
            if not count:
                idle.wait(POLL_SECONDS)

    @abstractmethod
    def poll(self) -> int:
        """Process items that are due. Return how many there were; after 0 the thread pauses."""

    @abstractmethod
    def clean_up(self) -> None:
        """Delete rows that nobody needs any more."""
