"""The tables of webhooks."""

from datetime import datetime

from sqlalchemy import ForeignKey, Index, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from core.tables.base import Base, Json


class Webhook(Base):
    """A URL that receives the events of its tenant's jobs."""

    __tablename__ = "webhooks"
    __table_args__ = (Index("webhooks_by_tenant", "tenant", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    url: Mapped[str]
    events: Mapped[list[str]] = mapped_column(JSONB)
    """Types of events that the webhook receives. An empty list means all types."""
    secret: Mapped[str]
    """Secret that signs the messages. It is stored in plain text, because signing needs it."""
    old_secret: Mapped[str | None]
    old_secret_until: Mapped[datetime | None]
    failing_since: Mapped[datetime | None]
    """Time of the first failure since the last success or `enable`. None if there is no such failure."""
    disabled_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WebhookDelivery(Base):
    """A message to a webhook about one event. The row's id is the id of the message, the same at every try."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("webhook_deliveries_by_webhook", "webhook_id", "id"),
        Index("webhook_deliveries_due", "due_at", postgresql_where=text("due_at IS NOT NULL")),
        Index("webhook_deliveries_pending", "webhook_id", postgresql_where=text("due_at IS NOT NULL")),
        Index("webhook_deliveries_settled", "created_at", postgresql_where=text("due_at IS NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    type: Mapped[str]
    body: Mapped[str]
    state: Mapped[str]
    tries: Mapped[int] = mapped_column(server_default=text("0"))
    """Number of tries, including one that is running. Only the newest try may write its result."""
    log: Mapped[list[Json]] = mapped_column(JSONB, server_default=text("'[]'"))
    """One entry per finished try: [{"at", "status", "text"}]."""
    due_at: Mapped[datetime | None]
    """Time from which a sender thread can claim the row. None if the delivery has finished or waits for `enable`."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
