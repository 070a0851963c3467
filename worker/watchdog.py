"""Detect a training process that hangs: record each message, and report when the next message is overdue.

A process that hangs in a GPU kernel, a collective operation or a file system is alive but sends nothing. In training,
the time limit follows from the duration of earlier steps. In other phases a long silence is normal, so the limit is
one hour.
"""

import time
from collections import deque
from statistics import median

from core.states import Phase
from worker.protocol import Message, Progressed

SILENT_SECONDS = 3600.0
"""Seconds without any message after which a process counts as hanging. Downloads of large models take longest."""
STEP_SECONDS = 600.0
"""Seconds without a new training step that never count as hanging."""
STEP_MEDIANS = 10
"""Multiple of the median step time without a new step after which training counts as hanging.

`STEP_SECONDS` must also have passed.
"""
REMEMBERED = 101
"""Number of latest steps whose median duration is used."""


class Watchdog:
    """Watches one training process."""

    def __init__(self) -> None:
        self._last_message = self._last_step = time.monotonic()
        self._phase: Phase | None = None
        self._step = -1
        self._durations: deque[float] = deque(maxlen=REMEMBERED)

    @property
    def phase(self) -> Phase | None:
        """The phase that the process has reported last."""
        return self._phase

    def record(self, message: Message) -> None:
        """Record a message that the process has just sent."""
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
        """Return a sentence that says what is overdue and since when, or None if nothing is overdue."""
        now = time.monotonic()
        if now > self._last_message + SILENT_SECONDS:
            return f"The training process sent no message for {now - self._last_message:.0f} s."
        if self._phase is Phase.TRAINING and self._durations:
            typical = median(self._durations)
            if now > self._last_step + max(STEP_SECONDS, STEP_MEDIANS * typical):
                return f"No new training step for {now - self._last_step:.0f} s; the median step takes {typical:.1f} s."
        return None
