"""The tables of API keys, hub tokens, browser sessions and the audit log."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, func
from sqlalchemy.orm import Mapped, mapped_column

from core.tables.base import Base


class ApiKey(Base):
    """API key of a tenant. The key is 256 random bits. Only its SHA-256 is stored."""

    __tablename__ = "api_keys"
    __table_args__ = (Index("api_keys_by_tenant", "tenant", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str]
    scope: Mapped[str]
    sha256: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class HubToken(Base):
    """Access token of a tenant for the model hub."""

    __tablename__ = "hub_tokens"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str]
    """Id of the token. A token that replaces another gets a new id."""
    name: Mapped[str]
    """Name of the hub account that owns the token, read when the token was stored."""
    sealed: Mapped[str]
    """The token, encrypted by `core.access.encryption`."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class SignIn(Base):
    """Session of a browser that signed in with an API key. The database has only hashes of its tokens."""

    __tablename__ = "sign_ins"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id", ondelete="CASCADE"))
    sha256: Mapped[str] = mapped_column(unique=True)
    former_sha256: Mapped[str | None] = mapped_column(index=True)
    """Hash of the previous token. None if that token is invalid now, see `core.access.sign_ins.GRACE`."""
    csrf: Mapped[str]
    """Token that every form of this browser must contain, as protection against forged requests (CSRF)."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    rotated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class AuditEntry(Base):
    """A change by a caller, or the expiry of a dataset. The row is never changed or deleted."""

    __tablename__ = "audit_log"
    __table_args__ = (
        Index("audit_log_by_tenant", "tenant", "id"),
        Index("audit_log_by_action", "tenant", "action", "created_at"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    tenant: Mapped[str]
    key_id: Mapped[str]
    request_id: Mapped[str]
    action: Mapped[str]
    """Operation id in the OpenAPI document, or `expire_dataset`."""
    target: Mapped[str]
    """Id of the object that was created, changed or deleted."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
