"""The life of a job: its states, and the one table of moves between them. Nothing here touches a database."""

from enum import StrEnum

OUT_OF_MEMORY = "out_of_memory"
"""The code of a failure for want of memory, on the device or on its machine."""


PHASE_BEGAN, TOPOLOGY_EVOLVED = "phase.began", "topology.evolved"
"""Types of events that change no status."""


class Status(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Nothing more happens to the job."""
        return self in {Status.SUCCEEDED, Status.FAILED, Status.CANCELLED}


class Phase(StrEnum):
    """What a running attempt is doing."""

    LOADING = "loading"
    PRUNING = "pruning"
    RECONSTRUCTING = "reconstructing"
    TRAINING = "training"
    EVALUATING = "evaluating"
    EXPORTING = "exporting"
    UPLOADING = "uploading"


class Transition(StrEnum):
    """Everything that can happen to a job; the event that it leaves is named `job.<move>`."""

    CREATED = "created"
    CLAIMED = "claimed"  # a worker took it
    RELEASED = "released"  # the worker gave it back (shutdown, pause); the attempt is not charged
    LOST = "lost"  # the lease ran out; the attempt is charged
    RETRIED = "retried"  # the attempt failed on our side and may be tried again; charged
    PAUSING = "pausing"  # a pause was asked for while it ran; its worker saves and gives it back
    UNPAUSED = "unpaused"  # that pause was taken back before it had come about
    PAUSED = "paused"  # no worker takes it; why, its reason says
    STARTED = "started"  # it was made to wait, and waits no longer
    RESUMED = "resumed"
    STOPPING = "stopping"  # it trains no further, and publishes what there is
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Reason(StrEnum):
    """Why a job is paused."""

    NOT_STARTED = "not_started"  # `auto_start` was false
    ASKED = "asked"
    DISK_FULL = "disk_full"  # until a worker has room enough
    STORAGE_FULL = "storage_full"  # until the bucket has


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
"""Move -> (the states it may start from, the state it ends in; None where it stays). CREATED has no row before it."""
