"""Repeat a request to the hub or to object storage while it is unreachable, so that a short outage fails no attempt."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import constants

from core.states import Reason
from seft.errors import SourceError
from seft.models.hub_files import UNREACHABLE

RETRY_SECONDS = 600.0
"""Seconds after the first failure for which a request is repeated."""
LONG_TRY_SECONDS = 600.0
"""A try that ran for longer has transferred bytes, so its failure counts as the first. A server that does not answer
ends a try earlier."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
"""Seconds between two tries. Each pause is twice as long as the one before."""

log = logging.getLogger(__name__)
T = TypeVar("T")

PAUSES = {
    Reason.STORAGE_FULL: "The object storage is full. The job continues by itself as soon as the storage has space.",
    Reason.STORAGE_UNREACHABLE: (
        "The object storage does not answer, or answers with an error. The job continues by itself as soon as the"
        " storage works again."
    ),
    Reason.HUB_UNREACHABLE: (
        "The worker cannot reach the model hub. The job continues by itself as soon as the hub answers."
    ),
}
"""What the user reads about a pause."""


class PauseError(Exception):
    """The attempt needs a server that does not do its part now. The job is paused for `reason`, which is in `PAUSES`.

    It does not count as a failure, however long it takes.
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(PAUSES[reason])
        self.reason = reason


def retry(
    action: Callable[[], T], is_outage: Callable[[Exception], bool], wait: Callable[[float], object] = time.sleep
) -> T:
    """Return the result of `action`. Raises its error if it is no outage, or if the outage takes too long.

    `wait` waits for a number of seconds. It may raise an error to end the tries.
    """
    deadline, pause = None, FIRST_PAUSE
    while True:
        began = time.monotonic()
        try:
            return action()
        except Exception as error:
            now = time.monotonic()
            if deadline is None or now - began > LONG_TRY_SECONDS:
                deadline, pause = now + RETRY_SECONDS, FIRST_PAUSE
            if not is_outage(error) or now > deadline:
                raise
            log.warning("The next try is in %s s: %s", pause, error)
        wait(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def retry_hub(action: Callable[[], T], wait: Callable[[float], object] = time.sleep) -> T:
    """Return the result of `action`, which asks the hub. Raises its SourceError if the hub is unreachable for too long.

    `wait` is that of `retry`.
    """
    return retry(action, _hub_is_unreachable, wait)


def _hub_is_unreachable(error: Exception) -> bool:
    return isinstance(error, SourceError) and error.code == UNREACHABLE and not constants.HF_HUB_OFFLINE
