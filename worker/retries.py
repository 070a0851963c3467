"""Repeat a request to the hub or to object storage while it is unreachable. A short outage fails no attempt."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import constants

from core.states import Reason
from seft.errors import SourceError
from seft.models.hub_files import UNREACHABLE

RETRY_SECONDS = 600.0
"""Seconds after the first failure for which a request is repeated."""
LONG_TRY_SECONDS, MOST_LONG_TRIES = 600.0, 5
"""Seconds, and number of tries. A longer try has transferred bytes, so its failure counts as the first.

This applies only to the given number of tries, because a transfer may always fail near its end. If a try finishes more
files, both limits start again, because the next try continues after these files. A try without an answer from the
server ends earlier.
"""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
"""Minimum and maximum seconds between two tries. Each pause is twice as long as the one before."""

log = logging.getLogger(__name__)
T = TypeVar("T")

PAUSES = {
    Reason.STORAGE_FULL: (
        "The object storage is full. The job continues automatically as soon as the storage has space."
    ),
    Reason.STORAGE_UNREACHABLE: (
        "The object storage does not answer, or answers with an error. The job continues automatically as soon"
        " as the storage works again."
    ),
    Reason.HUB_UNREACHABLE: (
        "The worker cannot reach the model hub. The job continues automatically as soon as the hub answers."
    ),
}
"""The message to the user for each reason."""


class PauseError(Exception):
    """The attempt needs a server that is full or unreachable. The job is paused for `reason`, a key of `PAUSES`.

    The pause does not count as a failure, however long it takes.
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(PAUSES[reason])
        self.reason = reason


def retry(
    action: Callable[[], T],
    is_outage: Callable[[Exception], bool],
    wait: Callable[[float], object] = time.sleep,
    finished: Callable[[], int] = lambda: 0,
) -> T:
    """Return the result of `action`. Raises its error if it is not an outage, or if the outage takes too long.

    `wait` waits for a number of seconds. It may raise an error to end the tries. `finished` counts the files that are
    finished. If this number changes, the time and the number of long tries start again at zero.
    """
    deadline, pause, long_tries, count = None, FIRST_PAUSE, 0, finished()
    while True:
        began = time.monotonic()
        try:
            return action()
        except Exception as error:
            now, before, count = time.monotonic(), count, finished()
            if count != before:
                deadline, long_tries = None, 0
            is_long = now - began > LONG_TRY_SECONDS
            long_tries += is_long
            if deadline is None or (is_long and long_tries <= MOST_LONG_TRIES):
                deadline, pause = now + RETRY_SECONDS, FIRST_PAUSE
            if not is_outage(error) or now > deadline:
                raise
            log.warning("The next try is in %s s: %s", pause, error)
        wait(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def retry_hub(action: Callable[[], T], wait: Callable[[float], object] = time.sleep, folder: Path | None = None) -> T:
    """Return the result of `action`, which asks the hub. Raises its SourceError if the hub is unreachable for too long.

    `wait` is the same as for `retry`. If `action` downloads files, it adds them to `folder` when they are finished.
    """
    return retry(action, _hub_is_unreachable, wait, lambda: len([*folder.glob("*")]) if folder else 0)


def _hub_is_unreachable(error: Exception) -> bool:
    return isinstance(error, SourceError) and error.code == UNREACHABLE and not constants.HF_HUB_OFFLINE
