"""The state of one attempt: which states exist, what moves between them, and the deadlines that run beside them.

`worker.attempt` acts on it. Nothing here does I/O.
"""

import time
from enum import StrEnum
from math import inf

DRAIN_SECONDS = 20.0
"""Seconds from a shutdown to the job's release. Orchestrators kill a process after 30."""
PAUSE_SECONDS = 120.0
"""Seconds from a request to pause to the job's release. Longer, because nothing kills the worker meanwhile."""
STACK_SECONDS = 2.0
"""Seconds that a process that hangs gets to write its stacks."""


class State(StrEnum):
    """What an attempt is doing."""

    FETCHING = "fetching"
    """The worker downloads the job's files. There is no training process yet."""
    TRAINING = "training"
    """The training process runs."""
    SAVING = "saving"
    """The process has exited on request. The worker uploads its last state."""
    UPLOADING = "uploading"
    """The process has finished and was ended. The worker uploads the checkpoint."""
    ENDED = "ended"
    """The job was published, failed, paused or released. The attempt writes nothing more."""


TRANSITIONS = {
    State.FETCHING: {
        State.TRAINING,  # the files are complete and the process was started
        State.ENDED,  # a request to stop: released at once; or an error
    },
    State.TRAINING: {
        State.SAVING,  # the process exits after a request to stop
        State.UPLOADING,  # the process reports `Finished`
        State.ENDED,  # an error, a full disk, a process that hangs or exits unasked, or `release_by` has passed
    },
    State.SAVING: {
        State.ENDED,  # the last state is stored or `release_by` has passed: released; or an error
    },
    State.UPLOADING: {
        State.ENDED,  # published; or an error, a full object storage, or `release_by` has passed
    },
    State.ENDED: set(),
}


class Lifecycle:
    """The state of an attempt and its two deadlines. A deadline that was not set is infinite.

    A request to stop (a shutdown, a pause) sets `release_by` in any state. A hang sets `stacks_by` in TRAINING. Both
    may be set. The first one to pass ends the attempt.
    """

    def __init__(self) -> None:
        self.states = [State.FETCHING]
        """All states so far, the current one last."""
        self.release_by = inf
        """When the job goes back to the queue even if its last state is not stored."""
        self.stacks_by = inf
        """When the attempt of a process that hangs fails."""
        self.hang = ""
        """What the process did not do in time; empty if it does not hang."""

    @property
    def state(self) -> State:
        """The current state."""
        return self.states[-1]

    @property
    def ended(self) -> bool:
        """True if the attempt is over."""
        return self.state is State.ENDED

    @property
    def stop_requested(self) -> bool:
        """True if the process was asked to save its state and exit."""
        return self.release_by < inf

    @property
    def release_is_due(self) -> bool:
        """True if the time to save the state is up."""
        return time.monotonic() > self.release_by

    @property
    def stacks_are_due(self) -> bool:
        """True if a process that hangs has had its time to write its stacks."""
        return time.monotonic() > self.stacks_by

    def move(self, to: State) -> None:
        """Enter a state. Raises ValueError if `TRANSITIONS` does not allow it."""
        if to not in TRANSITIONS[self.state]:
            raise ValueError(f"an attempt cannot move from {self.state} to {to}")
        self.states.append(to)

    def request_stop(self, *, draining: bool) -> bool:
        """Set or shorten `release_by`. Returns True on the first call."""
        first = not self.stop_requested
        self.release_by = min(self.release_by, time.monotonic() + (DRAIN_SECONDS if draining else PAUSE_SECONDS))
        return first

    def report_hang(self, description: str) -> None:
        """Record that the process hangs, and set `stacks_by`."""
        self.hang, self.stacks_by = description, time.monotonic() + STACK_SECONDS
