"""Webhooks of a tenant: their number, and the pauses between the tries to send a message."""

import secrets
from collections.abc import Callable, Sequence

import pytest
from sqlalchemy import func, select, update

from core import webhooks
from core.tables import WebhookDelivery
from core.webhooks import JITTER, RETRY_DELAYS, DeliveryResult
from tests.core.conftest import Sessions, accepted

URL = "https://receiver.example/"


def test_concurrent_requests_cannot_exceed_the_limit_of_webhooks(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "MAX_WEBHOOKS", 2)
    assert accepted(sessions, lambda session, _: webhooks.create(session, "ours", URL, [])) == 2


@pytest.mark.parametrize("choose", [min, max])
def test_the_pauses_between_the_tries_grow_and_differ_at_random(
    sessions: Sessions, choose: Callable[[Sequence[float]], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "choice", choose)
    monkeypatch.setattr(webhooks, "DISABLED_AFTER", webhooks.DISABLED_AFTER * 1000)
    with sessions.begin() as session:
        webhooks.send_test(session, "ours", webhooks.create(session, "ours", URL, []).id)
    pauses = []
    for _ in RETRY_DELAYS:
        with sessions.begin() as session:
            session.execute(update(WebhookDelivery).values(due_at=func.now()))
        with sessions.begin() as session:
            (message,) = webhooks.claim(session, 1)
            webhooks.record_result(session, message, DeliveryResult(500, "It is broken."))
            session.flush()
            seconds = func.extract("epoch", WebhookDelivery.due_at - func.now())
            pauses.append(float(session.scalars(select(seconds)).one()))
    assert pauses == pytest.approx([delay * choose(JITTER) for delay in RETRY_DELAYS])
