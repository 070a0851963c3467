"""The error of a failed attempt, and how it follows from the last message or the exit of its training process."""

import signal
import time

import structlog

from core.specs import JobSpec
from core.states import OUT_OF_MEMORY, Reason
from seft.errors import VerifierKilledError
from seft.models.hub_files import UNREACHABLE
from worker import memory
from worker.protocol import Failed
from worker.retries import PauseError

log = structlog.get_logger(__name__)
RECENT_SECONDS = 60.0
"""A process that ends within this time after the kernel has killed a process may be the killed one, or part of it."""


class AttemptError(Exception):
    """The attempt has failed. If `user_error` is true, another attempt would fail in the same way.

    `of_host` is true if the machine ran out of memory, and false if the device did.
    """

    def __init__(self, code: str, message: str, *, user_error: bool = False, of_host: bool = False) -> None:
        super().__init__(message)
        self.code, self.user_error, self.of_host = code, user_error, of_host


class Failures:
    """Finds the error of one attempt, and whether the kernel has killed a process for lack of memory."""

    def __init__(self, spec: JobSpec) -> None:
        self._devices = spec.devices
        self._kills_before = self._newest_kills = memory.oom_kills()
        self._observed_at = time.monotonic()

    def observe(self) -> None:
        """Forget kills of the kernel that are older than `RECENT_SECONDS` to twice this time.

        They may have killed another process than the one of this attempt.
        """
        now = time.monotonic()
        if now - self._observed_at >= RECENT_SECONDS:
            self._observed_at, self._kills_before, self._newest_kills = now, self._newest_kills, memory.oom_kills()

    def of_message(self, message: Failed) -> AttemptError | PauseError:
        """Return the error of a message: PauseError if the hub is unreachable, otherwise AttemptError."""
        if message.code == UNREACHABLE:
            log.warning("hub.unreachable", error=message.message)
            return PauseError(Reason.HUB_UNREACHABLE)
        if message.code == VerifierKilledError.code and self._kernel_killed:
            return _killed("the process that verifies the checkpoint")
        return AttemptError(message.code, message.message, user_error=message.user_error, of_host=message.of_host)

    def of_exit(self, code: int, output: str) -> AttemptError:
        """Return the error of a process that exited without a message. `output` is the end of its output."""
        # With several devices, the kernel kills one of the processes, and the launch ends the others.
        if (code == -signal.SIGKILL or self._devices > 1) and self._kernel_killed:
            return _killed("the training process")
        message = f"The training process exited with status {code}. Its last output:\n{output}"
        return AttemptError("training_process_died", message)

    @property
    def _kernel_killed(self) -> bool:
        return memory.oom_kills() > self._kills_before


def _killed(process: str) -> AttemptError:
    message = f"The kernel killed {process} because the machine ran out of memory."
    return AttemptError(OUT_OF_MEMORY, message, user_error=True, of_host=True)
