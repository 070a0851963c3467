"""The tables of datasets and their imports."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import BigInteger, ForeignKey, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from core.tables.base import Base, Json


class StoredDataset(NamedTuple):
    """What a worker must know of a dataset: key and SHA-256 of its object, and its name."""

    key: str
    sha256: str
    name: str


class Dataset(Base):
    """A dataset that was uploaded and checked."""

    __tablename__ = "datasets"
    __table_args__ = (Index("datasets_by_tenant", "tenant", "id"), Index("datasets_by_object", "object_key"))

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str]
    format: Mapped[str]
    sha256: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    records: Mapped[int] = mapped_column(BigInteger)
    skipped: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """Number of invalid lines of the uploaded file that were left out."""
    object_key: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    uploaded_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """Time of the last upload of this name and content."""
    deleted_at: Mapped[datetime | None]
    """Time of deletion. The row is kept for jobs that use it. The object is deleted when no other row needs it."""

    @property
    def stored(self) -> StoredDataset:
        """What a worker must know of the dataset."""
        return StoredDataset(self.object_key, self.sha256, self.name)


class Import(Base):
    """An import of a dataset: a file that is uploaded in parts, or a source that the service fetches."""

    __tablename__ = "imports"
    __table_args__ = (
        Index("imports_by_tenant", "tenant", "id"),
        Index("imports_due", "due_at", postgresql_where=text("due_at IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str]
    state: Mapped[str]
    source: Mapped[str | None]
    upload: Mapped[str | None]
    """Id of the multipart upload in the object storage. None for a source."""
    bytes: Mapped[int | None] = mapped_column(BigInteger)
    resume_key: Mapped[str | None]
    skip_percentage: Mapped[float]
    tries: Mapped[int] = mapped_column(server_default=text("0"))
    """Number of tries, including one that is running. Only the newest try may write its result."""
    outages: Mapped[int] = mapped_column(server_default=text("0"))
    """Number of tries that ended because the object storage was not available."""
    due_at: Mapped[datetime | None]
    """Time from which an importer can claim the row. None if no importer may claim it."""
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id", ondelete="SET NULL"))
    error: Mapped[Json | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
