"""Webhooks whose receivers are slow, or whose tenant has many messages, do not delay other tenants."""

import threading

import pytest
from sqlalchemy import func, insert, update
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from api import webhook_sender
from api.usecases import webhooks as usecases
from core import webhooks
from core.jobs.attempts import Attempt
from core.tables import AuditEntry, Webhook
from tests.api.conftest import NewClient, finish, problem
from tests.api.receivers import DRIPS, Receiver, dripping
from tests.api.test_webhook_sender import call, deliveries, hooked, known, receiver, rounds
from tests.waiting import wait_for

__all__ = ["receiver"]  # a fixture

Sessions = sessionmaker[Session]


@pytest.mark.parametrize("what", DRIPS)
def test_a_receiver_that_drips_is_cut_off(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_sender, "CALL_SECONDS", 0.5)
    scheme, head = DRIPS[what]
    with dripping(head, drips=what != "nothing") as receiver:
        result = call(f"{scheme}://127.0.0.1:{receiver.port}/")
    assert result.status is None
    assert "did not respond in time" in result.text


def test_a_name_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_sender, "CALL_SECONDS", 0.5)
    answered = threading.Event()

    def hang(_: str) -> list[str]:
        answered.wait()
        return ["127.0.0.1"]

    try:
        assert call("http://receiver.example/", hang).status is None
    finally:
        answered.set()


def test_a_certificate_is_verified_against_the_name() -> None:
    with dripping(b"") as receiver:
        assert "SSL" in call(f"https://receiver.example:{receiver.port}/", known).text


def test_slow_receivers_of_one_tenant_do_not_delay_another_tenant(
    receiver: Receiver,
    client: TestClient,
    new_client: NewClient,
    sessions: Sessions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webhook_sender, "CALL_SECONDS", 3600.0)
    theirs = new_client("theirs")
    thread = threading.Thread(target=rounds, args=[sessions], daemon=True)
    with dripping(b"HTTP/1.1 200 OK\r\nX-Long: ") as slow:
        for _ in range(2 * webhook_sender.TENANT_CALLS):
            hook = hooked(theirs, f"http://receiver.example:{slow.port}/")
            theirs.post(f"/webhooks/{hook['id']}/test")
        thread.start()
        wait_for(lambda: len(slow.threads) - 1 == webhook_sender.TENANT_CALLS)
        ours = hooked(client, receiver.url)
        for _ in range(2):
            client.post(f"/webhooks/{ours['id']}/test")
        wait_for(lambda: len(receiver.got) == 2)
        assert len(slow.threads) - 1 == webhook_sender.TENANT_CALLS
    thread.join()


def test_slow_receivers_of_eight_tenants_leave_places_for_a_ninth(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_sender, "CALLS", 16)
    monkeypatch.setattr(webhook_sender, "TENANT_CALLS", 2)
    monkeypatch.setattr(webhook_sender, "RESERVED_CALLS", 4)

    def add(tenant: str, count: int) -> None:
        with sessions.begin() as session:
            for _ in range(count):
                hook = webhooks.create(session, tenant, "https://example.com/", [])
                webhooks.send_test(session, tenant, hook.id)

    def claim() -> list[str]:
        claimed = thread._claim(running)
        running.extend(claimed)
        return [delivery.tenant for delivery in claimed]

    thread, running = webhook_sender.WebhookSender(sessions, []), list[webhooks.PendingDelivery]()
    slow = [f"slow-{number}" for number in range(8)]
    for tenant in slow:
        add(tenant, 3)
    assert sorted(claim()) == slow
    assert len(claim()) == 4
    assert claim() == []
    add("ninth", 2)
    assert claim() == ["ninth"]


def test_one_message_of_each_tenant_is_claimed_at_a_time(
    client: TestClient, new_client: NewClient, sessions: Sessions
) -> None:
    theirs = new_client("theirs")
    for each, count in ((theirs, 3), (client, 1)):
        hook = hooked(each, "https://example.com/")
        for _ in range(count):
            each.post(f"/webhooks/{hook['id']}/test")
    with sessions() as session:
        (claimed,) = webhooks.claim(session, 1, calls={"theirs": 2, "ours": 1})
        assert claimed.tenant == "ours"
    with sessions.begin() as session:
        assert [each.tenant for each in webhooks.claim(session, 8)] == ["theirs", "ours"]
        assert [each.tenant for each in webhooks.claim(session, 8, full=["theirs"])] == []
        (again,) = webhooks.claim(session, 8)
        assert webhooks.claim(session, 8, busy=[again.webhook_id]) == []


def test_the_messages_that_wait_are_limited_per_webhook(
    client: TestClient, sessions: Sessions, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "MAX_PENDING", 2)
    full, other = (hooked(client, "https://example.com/") for _ in range(2))
    for _ in range(2):
        client.post(f"/webhooks/{full['id']}/test")
    finish(sessions, attempt)
    dropped, *pending = deliveries(client, full)
    assert (dropped["type"], dropped["state"], dropped["due_at"]) == ("job.succeeded", "failed", None)
    assert "2 messages of this webhook already wait to be sent" in dropped["log"][0]["text"]
    assert [each["state"] for each in pending] == ["pending", "pending"]
    assert [each["state"] for each in deliveries(client, other)] == ["pending"]


def test_the_messages_of_a_disabled_webhook_are_not_due(
    client: TestClient, sessions: Sessions, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "MAX_PENDING", 2)
    disabled, healthy = (hooked(client, "https://example.com/") for _ in range(2))
    for _ in range(2):
        client.post(f"/webhooks/{disabled['id']}/test")
    with sessions.begin() as session:
        (in_flight,) = webhooks.claim(session, 1)
    client.post(f"/webhooks/{disabled['id']}/disable")
    with sessions.begin() as session:
        webhooks.record_result(session, in_flight, webhooks.DeliveryResult(500, ""))
    finish(sessions, attempt)
    assert [(each["state"], each["due_at"]) for each in deliveries(client, disabled)] == [("pending", None)] * 2
    with sessions.begin() as session:
        assert [each.webhook_id for each in webhooks.claim(session, 8)] == [healthy["id"]]
    client.post(f"/webhooks/{disabled['id']}/enable")
    assert all(each["due_at"] for each in deliveries(client, disabled))
    with sessions.begin() as session:  # as if an event was recorded while the webhook was disabled
        session.execute(update(Webhook).where(Webhook.id == disabled["id"]).values(disabled_at=func.now()))
        webhooks.delete_old(session, 1000)
    assert [each["due_at"] for each in deliveries(client, disabled)] == [None] * 2


def test_the_tests_of_a_tenant_are_limited_even_if_it_deletes_the_webhooks(
    client: TestClient, new_client: NewClient, sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other changes that the tenant makes do not matter."""
    monkeypatch.setattr(usecases, "MAX_TESTS", 3)
    for _ in range(3):
        hook = hooked(client, "https://example.com/")
        assert client.post(f"/webhooks/{hook['id']}/test").status_code == 202
        client.delete(f"/webhooks/{hook['id']}")
    cancelled = {"tenant": "ours", "key_id": "key_1", "request_id": "req_1", "action": "cancel_job"}
    with sessions.begin() as session:
        session.execute(insert(AuditEntry), [{**cancelled, "target": f"job_{number}"} for number in range(2000)])
    refused = client.post(f"/webhooks/{hooked(client, 'https://example.com/')['id']}/test")
    assert "at most 3 times in 60 s" in problem(refused, 429, "rate_limited")["detail"]
    assert refused.headers["retry-after"] == str(usecases.TEST_SECONDS)
    theirs = new_client("theirs")
    hook = hooked(theirs, "https://example.com/")
    assert theirs.post(f"/webhooks/{hook['id']}/test").status_code == 202
