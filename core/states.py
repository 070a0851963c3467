"""The statuses of jobs, imports and pushes, and the transitions of a job. This module does not use the database."""

from enum import StrEnum

OUT_OF_MEMORY = "out_of_memory"
"""Error code of a job that ran out of memory, on the device or on the host."""
LARGEST_NEED = 1 << 50
"""Largest number of bytes that a job can need. The database compares needs as integers of 64 bits."""

PHASE_BEGAN, TOPOLOGY_EVOLVED = "phase.began", "topology.evolved"
"""Types of events that do not report a change of status."""


class Status(StrEnum):
    """Status of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """True if the job has ended."""
        return self in {Status.SUCCEEDED, Status.FAILED, Status.CANCELLED}


ENDED = tuple(status for status in Status if status.final)
UNFINISHED = tuple(status for status in Status if not status.final)
"""Statuses of the jobs in the index `jobs_not_ended`."""


class ImportState(StrEnum):
    """State of an import.

    `receiving`: the user sends parts. `checking`: the import is queued for an importer, or in work.
    """

    RECEIVING = "receiving"
    CHECKING = "checking"
    DONE = "done"
    FAILED = "failed"


class PushState(StrEnum):
    """State of a push.

    `pending`: a worker will try it, or try it again. `running`: a worker uploads the files.
    """

    PENDING = "pending"
    RUNNING = "running"
    PUSHED = "pushed"
    FAILED = "failed"


class Phase(StrEnum):
    """Phase of a running attempt."""

    LOADING = "loading"
    WRITING = "writing"
    PRUNING = "pruning"
    RECONSTRUCTING = "reconstructing"
    TRAINING = "training"
    EVALUATING = "evaluating"
    EXPORTING = "exporting"
    UPLOADING = "uploading"


STATUS_EVENT_PREFIX = "job."
"""Prefix of the types of events that report a change of status. Webhooks get these events."""


class Transition(StrEnum):
    """Transition of a job: a change of its status, or a request for one. Each writes an event `job.<transition>`."""

    CREATED = "created"
    CLAIMED = "claimed"  # a worker started an attempt
    RELEASED = "released"  # the worker returned the job to the queue (shutdown, pause); does not count as a failure
    LOST = "lost"  # the lease expired; counts as a failure
    RETRIED = "retried"  # the attempt failed and the job is retried; counts as a failure
    PAUSING = "pausing"  # a pause of a running job is pending; its worker saves the state and releases it
    UNPAUSED = "unpaused"  # the pending pause was cancelled
    PAUSED = "paused"  # no worker claims the job; the reason says why
    STARTED = "started"  # a job with `auto_start: false` was started
    RESUMED = "resumed"
    STOPPING = "stopping"  # the job ends training early and publishes the result
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PUSHED = "pushed"  # the result was pushed to a repository; the status stays the same
    PUSH_FAILED = "push_failed"  # the result could not be pushed to a repository; the status stays the same
    DELETED = "deleted"  # the ended job was deleted, with its events; only webhooks receive this one


class Reason(StrEnum):
    """Reason why a job is paused."""

    NOT_STARTED = "not_started"  # `auto_start` was false
    ASKED = "asked"  # POST /jobs/{job_id}/pause
    DISK_FULL = "disk_full"  # until a worker has enough disk space
    STORAGE_FULL = "storage_full"  # until the bucket has enough space
    STORAGE_UNREACHABLE = "storage_unreachable"  # until the object storage answers
    HUB_UNREACHABLE = "hub_unreachable"  # until the model hub answers


TRANSITIONS: dict[Transition, tuple[frozenset[Status], Status | None]] = {
    Transition.CLAIMED: (frozenset({Status.QUEUED}), Status.RUNNING),
    Transition.RELEASED: (frozenset({Status.RUNNING}), Status.QUEUED),
    Transition.LOST: (frozenset({Status.RUNNING}), Status.QUEUED),
    Transition.RETRIED: (frozenset({Status.RUNNING}), Status.QUEUED),
    Transition.PAUSING: (frozenset({Status.RUNNING}), None),
    Transition.UNPAUSED: (frozenset({Status.RUNNING}), None),
    Transition.PAUSED: (frozenset({Status.QUEUED, Status.PAUSED}), Status.PAUSED),
    Transition.STARTED: (frozenset({Status.PAUSED}), Status.QUEUED),
    Transition.RESUMED: (frozenset({Status.PAUSED}), Status.QUEUED),
    Transition.STOPPING: (frozenset({Status.QUEUED, Status.RUNNING, Status.PAUSED}), None),
    Transition.SUCCEEDED: (frozenset({Status.RUNNING}), Status.SUCCEEDED),
    Transition.FAILED: (frozenset({Status.RUNNING}), Status.FAILED),
    Transition.CANCELLED: (frozenset({Status.QUEUED, Status.RUNNING, Status.PAUSED}), Status.CANCELLED),
}
"""Transition -> (statuses in which it is allowed, status afterwards).

The status afterwards is None if it does not change. CREATED and DELETED are not here: a job has no
status before it is created and after it is deleted. `core.jobs.pushes` writes the events PUSHED and PUSH_FAILED.
"""
