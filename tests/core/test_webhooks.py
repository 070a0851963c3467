"""Webhooks of a tenant: their number, and the pauses between the tries to send a message."""

import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from core import webhooks
from core.access import audit
from core.access.audit import Caller
from core.access.keys import Scope
from core.jobs import actions
from core.states import Status
from core.tables import WebhookDelivery
from core.webhooks import JITTER, RETRY_DELAYS, DeliveryResult
from tests.claims import job_row
from tests.core.conftest import MakeJob, Sessions, accepted, has_waiting_transaction
from tests.waiting import wait_for

URL = "https://receiver.example/"


def test_concurrent_requests_cannot_exceed_the_limit_of_webhooks(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "MAX_WEBHOOKS", 2)
    assert accepted(sessions, lambda session, _: webhooks.create(session, "ours", URL, [])) == 2


def test_concurrent_requests_cannot_exceed_the_rate_of_test_messages(sessions: Sessions) -> None:
    caller = Caller("ours", "key_a", Scope.WRITE, "req")

    def test(session: Session, number: int) -> None:
        audit.require_rate(session, "ours", "test_webhook", most=2, seconds=60)
        audit.record(session, caller, "test_webhook", str(number))

    assert accepted(sessions, test) == 2


def test_a_webhook_that_is_being_deleted_does_not_make_an_action_on_a_job_fail(
    sessions: Sessions, make_job: MakeJob
) -> None:
    job_id = make_job()
    with sessions.begin() as session:
        webhook_id = webhooks.create(session, "ours", URL, []).id

    def cancel() -> None:
        with sessions.begin() as session:
            actions.cancel(session, "ours", job_id)

    with ThreadPoolExecutor(1) as pool:
        with sessions.begin() as session:
            webhooks.remove(session, "ours", webhook_id)
            done = pool.submit(cancel)
            wait_for(lambda: has_waiting_transaction(sessions))
        done.result()
    assert job_row(sessions, job_id).status == Status.CANCELLED


def test_enabling_an_enabled_webhook_does_not_shorten_the_pause_before_the_next_try(sessions: Sessions) -> None:
    with sessions.begin() as session:
        webhook_id = webhooks.create(session, "ours", URL, []).id
        webhooks.send_test(session, "ours", webhook_id)
        session.execute(update(WebhookDelivery).values(due_at=func.now() + timedelta(hours=1)))
    with sessions.begin() as session:
        webhooks.enable(session, "ours", webhook_id)
    with sessions.begin() as session:
        assert webhooks.claim(session, 1) == []


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
