"""Detects a training process that hangs: it records each message and reports when the next one is overdue.

A process that hangs in a kernel, a collective or a file system is alive but sends nothing. In training, the limit
follows from the time of earlier steps. In other phases long silence is normal, so the limit is one hour.
"""

import time
from collections import deque
from statistics import median

from core.states import Phase
from worker.protocol import Message, Progressed

SILENT_SECONDS = 3600.0
"""Seconds without a message, in any phase, that count as a hang. Downloads of large models take longest."""
STEP_SECONDS = 600.0
"""Seconds without a new step in training that are never a hang."""
STEP_MEDIANS = 10
"""Median step times without a new step in training that count as a hang, after `STEP_SECONDS`."""
REMEMBERED = 101
"""Number of latest steps that the median is taken over."""


class Watchdog:
    """The watchdog of one process."""

    def __init__(self) -> None:
        self._last_message = self._last_step = time.monotonic()
        self._phase: Phase | None = None
        self._step = -1
        self._durations: deque[float] = deque(maxlen=REMEMBERED)

    @property
    def phase(self) -> Phase | None:
        """The phase that the process reported last."""
        return self._phase

    def record(self, message: Message) -> None:
        """Record a message that has just arrived."""
        self._last_message = time.monotonic()
        if not isinstance(message, Progressed):
            return
        if message.phase is not self._phase:
            self._phase, self._step, self._last_step = message.phase, message.step, self._last_message
        elif message.phase is Phase.TRAINING and message.step > self._step:
            self._durations.append(self._last_message - self._last_step)
            self._step, self._last_step = message.step, self._last_message

    @property
    def overdue(self) -> str | None:
        """A sentence that says what is overdue and for how long; None if nothing is."""
        now = time.monotonic()
        if now > self._last_message + SILENT_SECONDS:
            return f"The training process sent no message for {now - self._last_message:.0f} s."
        if self._phase is Phase.TRAINING and self._durations:
            typical = median(self._durations)
            if now > self._last_step + max(STEP_SECONDS, STEP_MEDIANS * typical):
                return f"No new training step for {now - self._last_step:.0f} s; the median step takes {typical:.1f} s."
        return None
