"""The states of one attempt, the transitions between them, and two deadlines.

`worker.attempt` acts on the states and deadlines. This module does no I/O.
"""

import time
from enum import StrEnum
from math import inf

DRAIN_SECONDS = 100.0
"""Seconds after a shutdown request until the job is released. Orchestrators must wait 120 seconds for a worker."""
PAUSE_SECONDS = 120.0
"""Seconds after a pause request until the job is released. Longer than `DRAIN_SECONDS`: no orchestrator waits."""
STACK_SECONDS = 2.0
"""Seconds that a hanging process gets to write the stacks of its threads."""


class State(StrEnum):
    """State of an attempt."""

    FETCHING = "fetching"
    """The worker downloads the job's files. There is no training process yet."""
    TRAINING = "training"
    """The training process runs."""
    SAVING = "saving"
    """The process has exited after a request to stop. The worker uploads its last state."""
    UPLOADING = "uploading"
    """The process has finished the job and has ended. The worker uploads the checkpoint."""
    ENDED = "ended"
    """The job was published, failed, paused or released. The attempt writes nothing more to the database."""


TRANSITIONS = {
    State.FETCHING: {
        State.TRAINING,  # the files are complete and the process was started
        State.ENDED,  # a request to stop (the job is released at once), an error, or an outage
    },
    State.TRAINING: {
        State.SAVING,  # the process exits after a request to stop
        State.UPLOADING,  # the process reports `Finished`
        State.ENDED,  # an error or an outage, the process hangs or exits without a request, or `release_by` has passed
    },
    State.SAVING: {
        State.ENDED,  # the last state is stored, an error or an outage, or `release_by` has passed
    },
    State.UPLOADING: {
        State.ENDED,  # the result is published, an error or an outage, or `release_by` has passed
    },
    State.ENDED: set(),
}
"""The allowed transitions of each state, with their causes.

An outage is a full disk or object storage, or a server that is unreachable. It pauses the job.
"""


class Lifecycle:
    """The state of an attempt, and its two deadlines. A deadline that is not set is infinite.

    A request to stop (a shutdown or a pause) sets the deadline `release_by`, in any state. A process that hangs in
    the state TRAINING sets the deadline `stacks_by`. The deadline is removed if the process goes on. If both deadlines
    are set, the earlier one ends the attempt.
    """

    def __init__(self) -> None:
        self.state = State.FETCHING
        """The current state. Change it with `move`."""
        self.release_by = inf
        """Time at which the job is released, even if its last state is not stored by then."""
        self.stacks_by = inf
        """Time at which the attempt fails because its process hangs. Until then the process can write its stacks."""

    @property
    def ended(self) -> bool:
        """True if the attempt has ended."""
        return self.state is State.ENDED

    @property
    def stop_requested(self) -> bool:
        """True if the attempt was asked to stop, by a shutdown or a pause."""
        return self.release_by < inf

    @property
    def release_is_due(self) -> bool:
        """True if `release_by` has passed."""
        return time.monotonic() > self.release_by

    @property
    def stacks_are_due(self) -> bool:
        """True if `stacks_by` has passed."""
        return time.monotonic() > self.stacks_by

    def move(self, to: State) -> None:
        """Change to another state. Raises ValueError if `TRANSITIONS` does not allow it."""
        if to not in TRANSITIONS[self.state]:
            raise ValueError(f"an attempt cannot move from {self.state} to {to}")
        self.state = to

    def request_stop(self, *, draining: bool) -> bool:
        """Set the deadline `release_by`, or make it earlier. Returns True on the first call."""
        first = not self.stop_requested
        self.release_by = min(self.release_by, time.monotonic() + (DRAIN_SECONDS if draining else PAUSE_SECONDS))
        return first

    def report_hang(self) -> bool:
        """Set the deadline `stacks_by` if it is not set. Returns True if it was not set."""
        if first := self.stacks_by == inf:
            self.stacks_by = time.monotonic() + STACK_SECONDS
        return first

    def withdraw_hang(self) -> None:
        """Remove the deadline `stacks_by`, because the process goes on."""
        self.stacks_by = inf
