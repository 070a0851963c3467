"""Webhooks: URLs of a tenant that receive the events of its jobs, and the deliveries of messages to them.

A delivery is a row that is written in the transaction of its event. A sender thread claims the row for
`CLAIM_SECONDS`, sends the message and records the result. If the sender dies before that, another sender sends the
message again. So a message can arrive twice, with the same id.
"""

import base64
import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cache

from sqlalchemy import (
    ColumnElement,
    Function,
    Integer,
    Select,
    bindparam,
    case,
    delete,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, distinct_on
from sqlalchemy.orm import Session

from core import ids
from core.errors import Code, Flaw, ProblemError
from core.infra.database import lock, newest_first
from core.tables import Job, Json, Webhook, WebhookDelivery

MAX_WEBHOOKS = 100
"""Maximum number of webhooks per tenant."""
MAX_PENDING = 1000
"""Maximum number of due messages per webhook. Further messages are not sent: their deliveries fail at once."""
TEST = "webhook.test"
"""Type of a test message."""
RETRY_DELAYS = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000)
"""Seconds between two tries. All tries together take about two days."""
JITTER = (0.9, 0.95, 1.0, 1.05, 1.1)
"""Factors of a retry delay. One is chosen at random, so deliveries that failed together are not retried together."""
GONE = 410
"""HTTP status that a receiver returns to unsubscribe. The webhook is then disabled."""
RETENTION = timedelta(days=30)
"""Age at which a finished delivery is deleted."""
DISABLED_AFTER = timedelta(days=3)
"""Time since the first failure, without a success, after which a webhook is disabled."""
OLD_SECRET_VALIDITY = timedelta(hours=24)
"""Time for which the previous secret also signs messages after the secret was replaced."""
CLAIM_SECONDS = 60
"""Seconds after which another sender can repeat a try that has no result yet."""


class DeliveryState(StrEnum):
    """State of a delivery."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class PendingDelivery:
    """A delivery that was claimed, with everything that is needed to send it."""

    id: str
    webhook_id: str
    tenant: str
    number: int
    """Number of this try, from 1. The result is recorded only if no newer try exists."""
    url: str
    body: str
    secrets: tuple[str, ...]
    """The secret, and the previous secret while it is still valid. The message is signed with each of them."""
    claimed_at: datetime
    """Time of the database. Receivers refuse messages whose time differs from theirs by some minutes."""


@dataclass(frozen=True, slots=True)
class DeliveryResult:
    """Result of a try to send a message."""

    status: int | None
    text: str
    """Start of the response body, or the error if there was no response."""

    @property
    def accepted(self) -> bool:
        """True if the receiver has accepted the message."""
        return self.status is not None and 200 <= self.status < 300


def create(session: Session, tenant: str, url: str, events: Sequence[str]) -> Webhook:
    """Create a webhook. Raises LIMIT_REACHED if the tenant already has `MAX_WEBHOOKS` webhooks."""
    # Without the lock, two concurrent requests could both create the last one.
    lock(session, f"webhooks\n{tenant}")
    if (session.scalar(select(func.count()).where(Webhook.tenant == tenant)) or 0) >= MAX_WEBHOOKS:
        raise ProblemError(
            Code.LIMIT_REACHED, f"You can have at most {MAX_WEBHOOKS} webhooks and have that many. Delete one first."
        )
    row = Webhook(id=ids.new("hook"), tenant=tenant, url=url, events=list(events), secret=_new_secret())
    session.add(row)
    session.flush()
    return row


def get(session: Session, tenant: str, webhook_id: str, *, change: bool = False) -> Webhook:
    """Return the tenant's webhook, and lock its row if `change` is true.

    Raises NOT_FOUND if the tenant has no such webhook.
    """
    query = select(Webhook).where(Webhook.id == webhook_id, Webhook.tenant == tenant)
    query = query.with_for_update(key_share=True) if change else query
    row = session.scalar(query) if ids.is_id("hook", webhook_id) else None
    if row is None:
        raise ProblemError(Code.NOT_FOUND, f"There is no webhook {webhook_id!r}. GET /webhooks lists yours.")
    return row


def list_all(session: Session, tenant: str) -> Sequence[Webhook]:
    """Return the tenant's webhooks, newest first."""
    return session.scalars(select(Webhook).where(Webhook.tenant == tenant).order_by(Webhook.id.desc())).all()


def remove(session: Session, tenant: str, webhook_id: str) -> Webhook:
    """Delete a webhook and its deliveries. Return the deleted row."""
    row = get(session, tenant, webhook_id)
    session.delete(row)
    session.flush()
    return row


def rotate(session: Session, tenant: str, webhook_id: str) -> Webhook:
    """Replace the secret of a webhook. The previous secret also signs messages for `OLD_SECRET_VALIDITY`.

    A secret that was replaced earlier does not sign any more.
    """
    row = get(session, tenant, webhook_id, change=True)
    row.old_secret, row.secret = row.secret, _new_secret()
    row.old_secret_until = func.now() + OLD_SECRET_VALIDITY
    session.flush()
    session.refresh(row)
    return row


def enable(session: Session, tenant: str, webhook_id: str) -> Webhook:
    """Enable a webhook. Its pending messages are sent again. Idempotent."""
    row = get(session, tenant, webhook_id, change=True)
    row.disabled_at = row.failing_since = None
    waiting = (WebhookDelivery.webhook_id == row.id, WebhookDelivery.state == DeliveryState.PENDING)
    _set_due(session, func.now(), *waiting, WebhookDelivery.due_at.is_(None))
    session.flush()
    return row


def disable(session: Session, tenant: str, webhook_id: str) -> Webhook:
    """Disable a webhook until it is enabled again. Idempotent.

    Its pending messages are kept for `RETENTION`. New events create no messages for it.
    """
    row = get(session, tenant, webhook_id, change=True)
    _disable(session, row, session.scalars(select(func.now())).one())
    session.flush()
    return row


def send_test(session: Session, tenant: str, webhook_id: str) -> WebhookDelivery:
    """Create a delivery of the type `webhook.test`. Raises CONFLICT if the webhook is disabled."""
    row = get(session, tenant, webhook_id, change=True)
    if row.disabled_at is not None:
        flaw = Flaw("webhook_id", "must be enabled", "disabled", f"POST /webhooks/{webhook_id}/enable first.")
        raise ProblemError(
            Code.CONFLICT, f"{webhook_id} is disabled. POST /webhooks/{webhook_id}/enable enables it.", (flaw,)
        )
    now: datetime = session.scalars(select(func.now())).one()
    (delivery,) = _add_deliveries(session, [row.id], type=TEST, at=now, data={"webhook_id": row.id})
    session.flush()
    return delivery


def enqueue(session: Session, job_id: str, type: str, event_data: Json, *, event_id: int, at: datetime) -> None:  # noqa: A002
    """Create deliveries of a job's event, one for each enabled webhook of the tenant that wants events of this type."""
    subscribed = session.scalars(_subscribed(), {"job_id": job_id, "types": [type]}).all()
    if subscribed:
        data = {"job_id": job_id, "event_id": event_id, **event_data}
        _add_deliveries(session, subscribed, type=type, at=at, data=data)


@cache
def _subscribed() -> Select[str]:
    types = bindparam("types", type_=JSONB)
    matching = or_(func.jsonb_array_length(Webhook.events) == 0, Webhook.events.contains(types))
    tenant = select(Job.tenant).where(Job.id == bindparam("job_id")).scalar_subquery()
    query = select(Webhook.id).where(Webhook.tenant == tenant, Webhook.disabled_at.is_(None), matching)
    # Locked, so that a concurrent delete of the webhook cannot make the transaction of the job's event fail.
    return query.with_for_update(read=True, key_share=True)


def deliveries(
    session: Session, webhook_id: str, *, after: str | None, limit: int
) -> tuple[Sequence[WebhookDelivery], bool]:
    """Return up to `limit` deliveries older than `after`, newest first.

    The second value is true if there are older deliveries.
    """
    return newest_first(session, WebhookDelivery, WebhookDelivery.webhook_id == webhook_id, after=after, limit=limit)


def claim(
    session: Session,
    limit: int,
    *,
    busy: Collection[str] = (),
    full: Collection[str] = (),
    calls: Mapping[str, int] | None = None,
) -> list[PendingDelivery]:
    """Claim up to `limit` due deliveries for `CLAIM_SECONDS`, at most one of each tenant.

    `calls` are the numbers of running calls of tenants. Deliveries of the tenants with the fewest calls are claimed
    first. Nothing of the webhooks in `busy` and of the tenants in `full` is claimed. So neither a slow receiver nor a
    tenant with many deliveries delays the others.
    """
    due = (WebhookDelivery.due_at <= func.now(), Webhook.disabled_at.is_(None))
    first_of_tenants = (
        select(WebhookDelivery.id)
        .ext(distinct_on(Webhook.tenant))
        .join(Webhook, Webhook.id == WebhookDelivery.webhook_id)
        .where(*due, Webhook.id.not_in(busy), Webhook.tenant.not_in(full))
        .order_by(Webhook.tenant, WebhookDelivery.due_at, WebhookDelivery.id)
    )
    query = (
        select(WebhookDelivery, Webhook)
        .join(Webhook, Webhook.id == WebhookDelivery.webhook_id)
        .where(WebhookDelivery.id.in_(first_of_tenants.scalar_subquery()), *due)
        .order_by(case(calls, value=Webhook.tenant, else_=0) if calls else literal(0), WebhookDelivery.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True, of=WebhookDelivery)
    )
    now: datetime = session.scalars(select(func.now())).one()
    claimed = []
    for delivery, webhook in session.execute(query):
        delivery.tries += 1
        delivery.due_at = now + timedelta(seconds=CLAIM_SECONDS)
        claimed.append(
            PendingDelivery(
                id=delivery.id,
                webhook_id=webhook.id,
                tenant=webhook.tenant,
                number=delivery.tries,
                url=webhook.url,
                body=delivery.body,
                secrets=_secrets(webhook, now),
                claimed_at=now,
            )
        )
    session.flush()
    return claimed


def record_result(session: Session, pending: PendingDelivery, result: DeliveryResult) -> None:
    """Record the result of a try. The delivery has then succeeded, is due again, or has failed.

    A webhook whose deliveries keep failing is disabled. Nothing is recorded if the webhook was deleted, or if another
    sender has claimed the delivery in the meantime.
    """
    webhook = session.scalar(select(Webhook).where(Webhook.id == pending.webhook_id).with_for_update(key_share=True))
    query = select(WebhookDelivery).where(WebhookDelivery.id == pending.id, WebhookDelivery.tries == pending.number)
    delivery = session.scalar(query.with_for_update())
    if webhook is None or delivery is None:
        return
    now: datetime = session.scalars(select(func.now())).one()
    delivery.log = [*delivery.log, {"at": now.isoformat(), "status": result.status, "text": result.text}]
    if result.accepted:
        delivery.state, delivery.due_at = DeliveryState.SUCCEEDED, None
        webhook.failing_since = None
        return
    if pending.number > len(RETRY_DELAYS):
        delivery.state, delivery.due_at = DeliveryState.FAILED, None
    else:
        delivery.due_at = now + timedelta(seconds=RETRY_DELAYS[pending.number - 1] * secrets.choice(JITTER))
    webhook.failing_since = webhook.failing_since or now
    if webhook.disabled_at or result.status == GONE or now - webhook.failing_since > DISABLED_AFTER:
        session.flush()
        _disable(session, webhook, now)


def delete_old(session: Session, limit: int) -> int:
    """Delete deliveries older than `RETENTION` that have finished, or whose webhook is disabled.

    Deletes up to `limit` of them, oldest first, and returns their number.
    """
    # An event that was recorded while its webhook was disabled can have left a due delivery.
    disabled = select(Webhook.id).where(Webhook.disabled_at.is_not(None)).with_for_update(key_share=True)
    disabled_ids = session.scalars(disabled).all()
    _set_due(session, None, WebhookDelivery.webhook_id.in_(disabled_ids), WebhookDelivery.due_at.is_not(None))
    old = select(WebhookDelivery.id).where(
        WebhookDelivery.due_at.is_(None), WebhookDelivery.created_at < func.now() - RETENTION
    )
    first = old.order_by(WebhookDelivery.created_at).limit(limit)
    deleted = delete(WebhookDelivery).where(WebhookDelivery.id.in_(first.scalar_subquery()))
    return len(session.scalars(deleted.returning(WebhookDelivery.id)).all())


def _add_deliveries(
    session: Session,
    webhook_ids: Sequence[str],
    *,
    type: str,  # noqa: A002
    at: datetime,
    data: Json,
) -> list[WebhookDelivery]:
    """Add a delivery to each webhook. If a webhook has `MAX_PENDING` due ones, its new one fails at once."""
    body = json.dumps({"type": type, "timestamp": at.isoformat(), "data": data})
    full = set(session.scalars(_full(), {"webhooks": webhook_ids, "most": MAX_PENDING}))
    text = f"Not sent, because {MAX_PENDING} messages of this webhook already wait to be sent."
    entry = {"at": at.isoformat(), "status": None, "text": text}
    pending: Json = {"state": DeliveryState.PENDING, "due_at": at}
    failed: Json = {"state": DeliveryState.FAILED, "due_at": None, "log": [entry]}
    rows = [
        WebhookDelivery(
            id=ids.new("msg"),
            webhook_id=webhook_id,
            type=type,
            body=body,
            **(failed if webhook_id in full else pending),
        )
        for webhook_id in webhook_ids
    ]
    session.add_all(rows)
    return rows


@cache
def _full() -> Select[str]:
    """Return the query for the webhooks that have at least `most` due deliveries.

    Its parameters are `webhooks`, the ids to choose from, and `most`.
    """
    due = select(WebhookDelivery.id).where(
        WebhookDelivery.webhook_id == Webhook.id, WebhookDelivery.due_at.is_not(None)
    )
    last = due.correlate(Webhook).offset(bindparam("most", type_=Integer) - 1).limit(1)
    return select(Webhook.id).where(Webhook.id.in_(bindparam("webhooks", expanding=True)), last.exists())


def _disable(session: Session, webhook: Webhook, now: datetime) -> None:
    """Disable a webhook. Its pending deliveries are no longer due, so that senders do not read them."""
    webhook.disabled_at = webhook.disabled_at or now
    _set_due(session, None, WebhookDelivery.webhook_id == webhook.id, WebhookDelivery.due_at.is_not(None))


def _set_due(session: Session, at: Function[datetime] | None, *which: ColumnElement[bool]) -> None:
    change = update(WebhookDelivery).where(*which).values(due_at=at)
    session.execute(change, execution_options={"synchronize_session": False})


def _secrets(webhook: Webhook, now: datetime) -> tuple[str, ...]:
    until = webhook.old_secret_until
    if webhook.old_secret is None or until is None or until < now:
        return (webhook.secret,)
    return (webhook.secret, webhook.old_secret)


def _new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
