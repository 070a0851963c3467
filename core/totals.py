"""Permanent counters: sums that only grow, stored as rows.

They are correct in every process and after restarts, and outlive the jobs that they count. A sum is updated in the
transaction of the event that it counts, so that nothing is counted twice and a rollback counts nothing. Only rare
events update one, because its row is locked until the commit.
"""

from enum import StrEnum
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from core.tables import Total


class Sum(StrEnum):
    """Names of the sums. Each sum has a small set of labels."""

    PHASE_SECONDS = "phase_seconds"  # by phase: from its start to the start of the next phase of the same attempt
    JOB_SECONDS = "job_seconds"  # by status: from the first claim to the end
    UPLOADED_BYTES = "uploaded_bytes"  # by kind of object


class Kind(StrEnum):
    """Kinds of objects in storage."""

    DATASET = "dataset"
    STATE = "state"
    CHECKPOINT = "checkpoint"


def add(session: Session, name: Sum, label: str, value: Any) -> None:
    """Raise the count by 1 and the sum by `value`, a number or an SQL expression."""
    statement = insert(Total).values(name=name, label=label, count=1, sum=value)
    raised = {"count": Total.count + 1, "sum": Total.sum + statement.excluded.sum}
    session.execute(statement.on_conflict_do_update(index_elements=["name", "label"], set_=raised))


def read(session: Session, name: Sum) -> dict[str, tuple[int, float]]:
    """Return the count and the sum per label. Labels without a count are missing."""
    rows = select(Total.label, Total.count, Total.sum).where(Total.name == name)
    return {label: (count, total) for label, count, total in session.execute(rows)}
