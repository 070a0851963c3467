"""Whether a training process still gets on: told what it says, it tells when the next word is overdue.

A process that hangs in a kernel, a collective or a file system lives and says nothing. What a step costs is known from
the steps before; elsewhere a long silence is normal, and only a very long one counts.
"""

import time
from collections import deque
from statistics import median

from core.states import Phase
from worker.protocol import Message, Progressed

SILENT_SECONDS = 3600.0
"""A process that says nothing for so long hangs, whatever it does. A large model's download is the longest silence."""
STEP_SECONDS = 600.0
STEP_MEDIANS = 10
"""In training no new step for so many medians, and for `STEP_SECONDS`, is a hang."""
REMEMBERED = 101


class Watchdog:
    """Of one process. `limit` may change with everything that it says."""

    def __init__(self) -> None:
        self._heard = self._stepped = time.monotonic()
        self._phase: Phase | None = None
        self._step = -1
        self._durations: deque[float] = deque(maxlen=REMEMBERED)

    @property
    def phase(self) -> Phase | None:
        """What it was last heard to do."""
        return self._phase

    def hear(self, message: Message) -> None:
        """It said this, now."""
        self._heard = time.monotonic()
        if not isinstance(message, Progressed):
            return
        if message.phase is not self._phase:
            self._phase, self._step, self._stepped = message.phase, message.step, self._heard
        elif message.phase is Phase.TRAINING and message.step > self._step:
            self._durations.append(self._heard - self._stepped)
            self._step, self._stepped = message.step, self._heard

    @property
    def overdue(self) -> str | None:
        """What did not come, and for how long; None while all is well."""
        now = time.monotonic()
        if now > self._heard + SILENT_SECONDS:
            return f"The training process said nothing for {now - self._heard:.0f} s."
        if self._phase is Phase.TRAINING and self._durations:
            usual = median(self._durations)
            if now > self._stepped + max(STEP_SECONDS, STEP_MEDIANS * usual):
                return f"No step came for {now - self._stepped:.0f} s; half of those before took at most {usual:.1f} s."
        return None
