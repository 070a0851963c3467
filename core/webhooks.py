"""Webhooks: addresses that a tenant wants told what happens to its jobs, and the deliveries owed to them.

A delivery is a row, written in the transaction of the event that it tells of. Whoever makes it claims the row for a
while, and settles it; a courier that dies in between has only delayed it. It may thus come twice, under one id.
"""

import base64
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cache

from sqlalchemy import Select, bindparam, delete, func, or_, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from core import ids
from core.errors import Code, Flaw, ProblemError
from core.tables import Job, Json, Webhook, WebhookDelivery

MOST = 100
"""Webhooks of one tenant."""
PAUSES = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000)
"""Seconds between tries: over two days."""
SPREAD = (0.9, 0.95, 1.0, 1.05, 1.1)
"""Of a pause: what failed together is not tried again together."""
GONE = 410
"""The status with which a receiver says that it wants nothing more."""
KEPT = timedelta(days=30)
DISABLED_AFTER = timedelta(days=3)
"""Of failures without one success."""
OLD_SECRET = timedelta(hours=24)
"""For so long the secret before a rotation signs as well."""
CLAIM_SECONDS = 60


class FinishedDelivery(StrEnum):
    """Where a delivery stands."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class PendingDelivery:
    """A claimed delivery: everything that is needed to make it."""

    id: str
    webhook_id: str
    number: int
    """Of this try, from 1; settling holds for the newest one only."""
    url: str
    body: str
    secrets: tuple[str, ...]
    """The one that signs, and the one before it while that is still good."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a try: the status, or None and why there is none."""

    status: int | None
    text: str
    """The start of the answer's body, or what went wrong."""

    @property
    def accepted(self) -> bool:
        """Whether the receiver has it."""
        return self.status is not None and 200 <= self.status < 300


def create(session: Session, tenant: str, url: str, events: Sequence[str]) -> Webhook:
    """A new webhook; CONFLICT when the tenant has `MOST` of them."""
    # One at a time of a tenant, or two requests at once would both be the last one.
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"webhooks\n{tenant}", 0))))
    if (session.scalar(select(func.count()).where(Webhook.tenant == tenant)) or 0) >= MOST:
        raise ProblemError(Code.CONFLICT, f"There are {MOST} webhooks already. Delete one of them first.")
    row = Webhook(id=ids.new("hook"), tenant=tenant, url=url, events=list(events), secret=_new_secret())
    session.add(row)
    session.flush()
    session.refresh(row)
    return row


def get(session: Session, tenant: str, webhook_id: str, *, change: bool = False) -> Webhook:
    """The tenant's webhook, locked where it shall change; or NOT_FOUND."""
    query = select(Webhook).where(Webhook.id == webhook_id, Webhook.tenant == tenant)
    query = query.with_for_update(key_share=True) if change else query
    row = session.scalar(query) if ids.is_id("hook", webhook_id) else None
    if row is None:
        raise ProblemError(Code.NOT_FOUND, f"There is no webhook {webhook_id!r}. GET /webhooks lists yours.")
    return row


def list_all(session: Session, tenant: str) -> Sequence[Webhook]:
    """The tenant's webhooks, newest first."""
    return session.scalars(select(Webhook).where(Webhook.tenant == tenant).order_by(Webhook.id.desc())).all()


def remove(session: Session, tenant: str, webhook_id: str) -> Webhook:
    """Remove a webhook with its deliveries; the row as it was."""
    row = get(session, tenant, webhook_id)
    session.delete(row)
    session.flush()
    return row


def rotate(session: Session, tenant: str, webhook_id: str) -> Webhook:
    """Give a webhook a new secret; the one before goes on signing beside it for `OLD_SECRET`."""
    row = get(session, tenant, webhook_id, change=True)
    row.old_secret, row.secret = row.secret, _new_secret()
    row.old_secret_until = func.now() + OLD_SECRET
    session.flush()
    session.refresh(row)
    return row


def enable(session: Session, tenant: str, webhook_id: str) -> Webhook:
    """Take up the deliveries of a disabled webhook again; of one that is not disabled, nothing changes."""
    row = get(session, tenant, webhook_id, change=True)
    row.disabled_at = row.failing_since = None
    session.flush()
    return row


def disable(session: Session, tenant: str, webhook_id: str) -> Webhook:
    """Deliver nothing until it is enabled again, which takes up what is owed now; nothing more is owed till then."""
    row = get(session, tenant, webhook_id, change=True)
    row.disabled_at = row.disabled_at or session.scalars(select(func.now())).one()
    session.flush()
    return row


def test(session: Session, tenant: str, webhook_id: str) -> WebhookDelivery:
    """Owe a webhook a delivery that tells of nothing. CONFLICT when it is disabled."""
    row = get(session, tenant, webhook_id)
    if row.disabled_at is not None:
        flaw = Flaw("webhook_id", "is enabled", "disabled", f"POST /webhooks/{webhook_id}/enable first.")
        raise ProblemError(Code.CONFLICT, f"{webhook_id} is disabled; nothing is delivered to it.", (flaw,))
    now: datetime = session.scalars(select(func.now())).one()
    delivery = _owe(row.id, "webhook.test", now, {"webhook_id": row.id})
    session.add(delivery)
    session.flush()
    session.refresh(delivery)
    return delivery


def enqueue(session: Session, job_id: str, type: str, news: Json, *, event_id: int, at: datetime) -> None:  # noqa: A002
    """Owe the news of a job's event to every webhook of the tenant that wants it and is enabled."""
    data = {"job_id": job_id, "event_id": event_id, **news}
    wanting = session.scalars(_wanting(), {"job_id": job_id, "types": [type]})
    session.add_all([_owe(webhook_id, type, at, data) for webhook_id in wanting.all()])


@cache
def _wanting() -> Select[str]:
    types = bindparam("types", type_=JSONB)
    wanted = or_(func.jsonb_array_length(Webhook.events) == 0, Webhook.events.contains(types))
    tenant = select(Job.tenant).where(Job.id == bindparam("job_id")).scalar_subquery()
    query = select(Webhook.id).where(Webhook.tenant == tenant, Webhook.disabled_at.is_(None), wanted)
    # Held, so that a webhook that is deleted at this moment cannot fail the transaction that tells of a job.
    return query.with_for_update(read=True, key_share=True)


def deliveries(
    session: Session, webhook_id: str, *, after: str | None, limit: int
) -> tuple[Sequence[WebhookDelivery], bool]:
    """Up to `limit` deliveries, newest first, those older than `after`; and whether there are more."""
    query = select(WebhookDelivery).where(WebhookDelivery.webhook_id == webhook_id)
    query = query.order_by(WebhookDelivery.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(WebhookDelivery.id < after)
    rows = session.scalars(query).all()
    return rows[:limit], len(rows) > limit


def claim(session: Session, limit: int) -> list[PendingDelivery]:
    """Take up to `limit` deliveries that are due, the oldest of each webhook, for `CLAIM_SECONDS`.

    One of each: a receiver that is slow, and has much to get, keeps nobody else waiting.
    """
    due = WebhookDelivery.due_at <= func.now()
    oldest = (
        select(func.min(WebhookDelivery.id))
        .join(Webhook, Webhook.id == WebhookDelivery.webhook_id)
        .where(due, Webhook.disabled_at.is_(None))
        .group_by(WebhookDelivery.webhook_id)
    )
    query = (
        select(WebhookDelivery, Webhook)
        .join(Webhook, Webhook.id == WebhookDelivery.webhook_id)
        .where(WebhookDelivery.id.in_(oldest), due)
        .order_by(WebhookDelivery.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True, of=WebhookDelivery)
    )
    now: datetime = session.scalars(select(func.now())).one()
    owed = []
    for delivery, webhook in session.execute(query):
        delivery.tries += 1
        delivery.due_at = now + timedelta(seconds=CLAIM_SECONDS)
        owed.append(
            PendingDelivery(delivery.id, webhook.id, delivery.tries, webhook.url, delivery.body, _secrets(webhook, now))
        )
    session.flush()
    return owed


def record_result(session: Session, owed: PendingDelivery, answer: Answer) -> None:
    """Write down what came of a try: done, or due again, or given up; a webhook that only fails is disabled.

    Nothing, when the webhook was deleted, or another courier has claimed the delivery since.
    """
    webhook = session.scalar(select(Webhook).where(Webhook.id == owed.webhook_id).with_for_update(key_share=True))
    mine = select(WebhookDelivery).where(WebhookDelivery.id == owed.id, WebhookDelivery.tries == owed.number)
    delivery = session.scalar(mine.with_for_update())
    if webhook is None or delivery is None:
        return
    now: datetime = session.scalars(select(func.now())).one()
    delivery.log = [*delivery.log, {"at": now.isoformat(), "status": answer.status, "text": answer.text}]
    if answer.accepted:
        delivery.state, delivery.due_at = FinishedDelivery.SUCCEEDED, None
        webhook.failing_since = None
        return
    if owed.number > len(PAUSES):
        delivery.state, delivery.due_at = FinishedDelivery.FAILED, None
    else:
        delivery.due_at = now + timedelta(seconds=PAUSES[owed.number - 1] * secrets.choice(SPREAD))
    webhook.failing_since = webhook.failing_since or now
    if answer.status == GONE or now - webhook.failing_since > DISABLED_AFTER:
        webhook.disabled_at = webhook.disabled_at or now


def delete_old(session: Session) -> None:
    """Remove deliveries that were settled and are old."""
    old = WebhookDelivery.created_at < func.now() - KEPT
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.due_at.is_(None), old))


def _owe(webhook_id: str, type: str, at: datetime, data: Json) -> WebhookDelivery:  # noqa: A002
    body = json.dumps({"type": type, "timestamp": at.isoformat(), "data": data})
    return WebhookDelivery(
        id=ids.new("msg"), webhook_id=webhook_id, type=type, body=body, state=FinishedDelivery.PENDING, due_at=at
    )


def _secrets(webhook: Webhook, now: datetime) -> tuple[str, ...]:
    until = webhook.old_secret_until
    if webhook.old_secret is None or until is None or until < now:
        return (webhook.secret,)
    return (webhook.secret, webhook.old_secret)


def _new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
