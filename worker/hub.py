"""Ask the hub again while it does not answer, so that a short outage or a rate limit fails no attempt."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import constants

from seft.errors import SourceError
from seft.models.hub_files import UNREACHABLE

RETRY_SECONDS = 600.0
"""Seconds for which the hub is asked again."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds between two tries. Each pause is twice as long as the one before."""

log = logging.getLogger(__name__)
T = TypeVar("T")


def retry_hub(action: Callable[[], T], wait: Callable[[float], object] = time.sleep) -> T:
    """Return the result of `action`, which asks the hub. Raises its SourceError if the hub is unreachable for too long.

    `wait` waits for a number of seconds. It may raise an error to end the tries.
    """
    deadline, pause = time.monotonic() + RETRY_SECONDS, FIRST_PAUSE
    while True:
        try:
            return action()
        except SourceError as error:
            if error.code != UNREACHABLE or constants.HF_HUB_OFFLINE or time.monotonic() > deadline:
                raise
            log.warning("%s", error)
        wait(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
