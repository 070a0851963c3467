"""The table of pushes."""

from datetime import datetime

from sqlalchemy import ForeignKey, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from core.tables.base import Base, Json


class Push(Base):
    """A copy of a job's result into a repository of the model hub. There is one row per job and branch."""

    __tablename__ = "pushes"
    __table_args__ = (
        Index("pushes_by_job", "job_id", "repository", "revision", unique=True),
        Index("pushes_by_checkpoint", "checkpoint_id"),
        Index("pushes_due", "due_at", postgresql_where=text("due_at IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    checkpoint_id: Mapped[str | None] = mapped_column(ForeignKey("checkpoints.id", ondelete="SET NULL"))
    """The checkpoint that is pushed. None if it was deleted since. It does not expire while the push is unfinished."""
    repository: Mapped[str]
    revision: Mapped[str]
    """Branch of the repository."""
    private: Mapped[bool]
    """Whether the repository is private if the push creates it."""
    state: Mapped[str]
    tries: Mapped[int] = mapped_column(server_default=text("0"))
    """Number of tries, including one that is running. Only the newest try may write its result."""
    due_at: Mapped[datetime | None]
    """Time from which a worker can claim the row. None if the push has finished."""
    error: Mapped[Json | None]
    """Error of the last try that failed: {"code", "message"}."""
    commit_url: Mapped[str | None]
    requested_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]
