"""Detect a training process that hangs: record each message, and report when the next message is overdue.

A process that hangs in a GPU kernel, a collective operation or a file system is alive but sends nothing. In training,
the time limit follows from the duration of earlier steps. While the dataset is read, the model's tokenizer and chat
template run. If they do not end, they would not end in another attempt either, so this is an error of the user. In
other phases a long silence is normal, so the limit is one hour. A saved state on disk extends the limits of all phases
except reading, because a slow disk needs long to write it.
"""

import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from core.states import Phase
from worker.protocol import Message, Progressed, Reading

SILENT_SECONDS = 3600.0
"""Seconds without any message after which a process counts as hanging. A download that grows sends messages."""
STEP_SECONDS = 600.0
"""Seconds without progress up to which training never counts as hanging."""
STEP_MEDIANS = 10
"""Multiple of the median step time without progress after which training counts as hanging.

`STEP_SECONDS` must also have passed. An evaluation between two steps reports progress too. So does pruning after the
last step.
"""
RECORD_SECONDS, RECORD_BYTES_PER_SECOND = 300.0, 500_000
"""Seconds without a message while the dataset is read after which reading counts as hanging.

The limit is the first number, plus the bytes of all datasets divided by the second number, because one record can be as
large as all datasets together.
"""
LOOK_SECONDS = 10.0
"""Maximum seconds that count as silence between two looks for messages.

A worker that was stopped, or that waited for the database, has not looked. Messages may wait for it, or the process was
stopped too.
"""
STATE_BYTES_PER_SECOND = 10_000_000
"""The limits for silence and training are extended by the bytes of the saved states on disk, divided by this number.

A process that writes a state sends no message. Its file has its full size from the start, and the flush to the disk at
the end takes most of the time. So the growth of the file does not show whether the process hangs.
"""
REMEMBERED = 101
"""Number of latest steps whose median duration is used."""


class Overdue(NamedTuple):
    """A message that is overdue. `message` says what is missing, and for how long.

    If `user_error` is true, a retry cannot help.
    """

    message: str
    user_error: bool


class Watchdog:
    """Watches one training process.

    It reads datasets of `dataset_bytes` bytes in all. `state_bytes` is the size in bytes of its saved states on disk.
    """

    def __init__(self, dataset_bytes: Callable[[], int], state_bytes: Callable[[], int]) -> None:
        self._dataset_bytes, self._state_bytes = dataset_bytes, state_bytes
        self._reading: Reading | None = None
        self._last_message = self._last_progress = self._looked = time.monotonic()
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
        self._reading = message if isinstance(message, Reading) else None
        if not isinstance(message, Progressed):
            return
        if message.phase is Phase.TRAINING is self._phase and message.step > self._step:
            self._durations.append(self._last_message - self._last_progress)
        self._phase, self._step, self._last_progress = message.phase, message.step, self._last_message

    def touch(self) -> None:
        """Record activity of the process without a message. Any thread may call this."""
        self._last_message = time.monotonic()

    def look(self) -> None:
        """Record that the worker looks for messages. Call this often: see `LOOK_SECONDS`."""
        now = time.monotonic()
        missed = max(0.0, now - self._looked - LOOK_SECONDS)
        self._last_message, self._last_progress = (
            min(now, last + missed) for last in (self._last_message, self._last_progress)
        )
        self._looked = now

    @property
    def overdue(self) -> Overdue | None:
        """What is overdue, or None if nothing is overdue."""
        now = time.monotonic()
        silent = now - self._last_message
        if self._reading and silent > RECORD_SECONDS + self._dataset_bytes() / RECORD_BYTES_PER_SECOND:
            message = (
                f"The training process read no further record of the dataset for {silent:.0f} s after record"
                f" {self._reading.records}. The tokenizer or the chat template of the model needs too long for the next"
                " record. Shorten that record, or choose a different model."
            )
            return Overdue(message, user_error=True)
        if self._is_over(silent, SILENT_SECONDS):
            return Overdue(f"The training process sent no message for {silent:.0f} s.", user_error=False)
        if self._phase is Phase.TRAINING and self._durations:
            typical = median(self._durations)
            waited = now - self._last_progress
            if self._is_over(waited, max(STEP_SECONDS, STEP_MEDIANS * typical)):
                message = f"No progress in training for {waited:.0f} s; the median step takes {typical:.1f} s."
                return Overdue(message, user_error=False)
        return None

    def _is_over(self, waited: float, limit: float) -> bool:
        """Return whether a wait is longer than its limit, which is extended as `STATE_BYTES_PER_SECOND` says."""
        return waited > limit and waited > limit + self._state_bytes() / STATE_BYTES_PER_SECOND
