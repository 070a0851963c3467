"""What is counted for good: sums that only grow, kept as rows.

So they are right whichever process is asked and however often one was restarted, and they outlive the jobs that they
were counted from. A sum is raised in the transaction of what it counts: what was rolled back was not counted, and
nothing is counted twice. Nothing that happens often raises one, because its row is locked until the commit.
"""

from enum import StrEnum
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from core.tables import Total


class Sum(StrEnum):
    """What is summed up. Each sum has labels, and there are few of them."""

    PHASE_SECONDS = "phase_seconds"  # by phase: from its begin to that of the next one in the same attempt
    JOB_SECONDS = "job_seconds"  # by status: from the first claim to the end
    UPLOADED_BYTES = "uploaded_bytes"  # by kind of object


class Kind(StrEnum):
    """Objects that are put into storage."""

    DATASET = "dataset"
    STATE = "state"
    CHECKPOINT = "checkpoint"


def add(session: Session, to: Sum, label: str, value: Any) -> None:
    """Count once more, and add `value`, a number or an expression of one."""
    one = insert(Total).values(name=to, label=label, count=1, sum=value)
    more = {"count": Total.count + 1, "sum": Total.sum + one.excluded.sum}
    session.execute(one.on_conflict_do_update(index_elements=["name", "label"], set_=more))


def read(session: Session, name: Sum) -> dict[str, tuple[int, float]]:
    """Count and sum of every label that was counted."""
    rows = select(Total.label, Total.count, Total.sum).where(Total.name == name)
    return {label: (count, total) for label, count, total in session.execute(rows)}
