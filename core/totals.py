"""Sums that only grow. They are stored as rows, so they are permanent.

They are correct in every process and after restarts, and stay when the jobs that they count are deleted. A sum is
updated in the transaction of the event that it counts, so that nothing is counted twice, and nothing is counted after
a rollback. The update locks the sum's row until the commit, so only rare events may update a sum.
"""

from enum import StrEnum
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from core.tables import Total


class Sum(StrEnum):
    """Names of the sums. A sum has one value per label, and few labels."""

    PHASE_SECONDS = "phase_seconds"  # by phase: from its start to the start of the next phase of the same attempt
    JOB_SECONDS = "job_seconds"  # by status: from the first claim to the end
    UPLOADED_BYTES = "uploaded_bytes"  # by kind of object


class Kind(StrEnum):
    """Kinds of objects in storage."""

    DATASET = "dataset"
    STATE = "state"
    CHECKPOINT = "checkpoint"


def add(session: Session, name: Sum, label: str, value: Any) -> None:
    """Add 1 to the count and `value` to the sum of this label. `value` is a number or an SQL expression."""
    statement = insert(Total).values(name=name, label=label, count=1, sum=value)
    raised = {"count": Total.count + 1, "sum": Total.sum + statement.excluded.sum}
    session.execute(statement.on_conflict_do_update(index_elements=["name", "label"], set_=raised))


def read(session: Session, name: Sum) -> dict[str, tuple[int, float]]:
    """Return the count and the sum per label. A label that was never counted is missing."""
    rows = select(Total.label, Total.count, Total.sum).where(Total.name == name)
    return {label: (count, total) for label, count, total in session.execute(rows)}
