"""The life of a job: its states, and the one table of moves between them. Nothing here touches a database."""

from enum import StrEnum


class Status(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
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
    TRAINING = "training"
    EVALUATING = "evaluating"
    EXPORTING = "exporting"
    UPLOADING = "uploading"


class Move(StrEnum):
    """Everything that can happen to a job; the event that it leaves is named `job.<move>`."""

    CREATED = "created"
    CLAIMED = "claimed"  # a worker took it
    RELEASED = "released"  # the worker gave it back (shutdown); the attempt is not charged
    LOST = "lost"  # the lease ran out; the attempt is charged
    RETRIED = "retried"  # the attempt failed on our side and may be tried again; charged
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TRANSITIONS: dict[Move, tuple[frozenset[Status], Status]] = {
    Move.CLAIMED: (frozenset({Status.QUEUED}), Status.RUNNING),
    Move.RELEASED: (frozenset({Status.RUNNING}), Status.QUEUED),
    Move.LOST: (frozenset({Status.RUNNING}), Status.QUEUED),
    Move.RETRIED: (frozenset({Status.RUNNING}), Status.QUEUED),
    Move.SUCCEEDED: (frozenset({Status.RUNNING}), Status.SUCCEEDED),
    Move.FAILED: (frozenset({Status.RUNNING}), Status.FAILED),
    Move.CANCELLED: (frozenset({Status.QUEUED, Status.RUNNING}), Status.CANCELLED),
}
"""Move -> (the states it may start from, the state it ends in). CREATED has no row before it."""
