"""Webhook deliveries: signed, repeated until they arrive, and never sent to addresses that are not allowed."""

import base64
import hashlib
import hmac
import json
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network

import anyio
import pytest
from sqlalchemy import func, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from api import webhook_sender
from api.webhook_sender import ADDRESS_REFUSED, WebhookSender
from core import webhooks
from core.addresses import Network, Resolver, resolve
from core.jobs import attempts
from core.jobs.attempts import Attempt
from core.tables import Webhook, WebhookDelivery
from core.webhooks import RETRY_DELAYS, DeliveryResult
from tests.api.conftest import Json, NewClient, finish, problem
from tests.api.receivers import Receiver, receiving

Sessions = sessionmaker[Session]
LOOPBACK: list[Network] = [ip_network("127.0.0.0/8")]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as server:
        yield server


def known(host: str) -> list[str]:
    """Resolve the receiver's name to loopback, which is not allowed by default."""
    return ["127.0.0.1"] if host == "receiver.example" else resolve(host)


def rounds(sessions: Sessions, allowed: Sequence[Network] = LOOPBACK) -> int:
    """Let a sender work until nothing is due. Return how many deliveries it made."""
    thread, deliveries = WebhookSender(sessions, allowed, known), 0
    while count := thread.poll():
        deliveries += count
    return deliveries


def call(url: str, resolver: Resolver = resolve) -> DeliveryResult:
    """Send one message."""
    delivery = webhooks.PendingDelivery("msg_1", "hook_1", "ours", 1, url, "{}", ("whsec_AAAA",), datetime.now(UTC))
    return anyio.run(webhook_sender.call, delivery, LOOPBACK, resolver)


def hooked(client: TestClient, url: str, events: list[str] | None = None) -> Json:
    answer = client.post("/webhooks", json={"url": url, "events": events or []})
    assert answer.status_code == 201, answer.text
    hook: Json = answer.json()
    return hook


def deliveries(client: TestClient, hook: Json) -> list[Json]:
    data: list[Json] = client.get(f"/webhooks/{hook['id']}/deliveries").json()["data"]
    return data


def make_due(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.execute(update(WebhookDelivery).where(WebhookDelivery.due_at.is_not(None)).values(due_at=func.now()))


def signed(secret: str, headers: dict[str, str], body: str) -> str:
    """Compute the signature of standardwebhooks.com independently of the code."""
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{body}".encode()
    mac = hmac.new(base64.b64decode(secret[len("whsec_") :]), content, hashlib.sha256)
    return "v1," + base64.b64encode(mac.digest()).decode()


def test_a_message_has_the_time_of_the_database(
    receiver: Receiver, client: TestClient, sessions: Sessions, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook, claim, past = hooked(client, receiver.url), webhooks.claim, datetime(2020, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(webhooks, "claim", lambda *a, **k: [replace(each, claimed_at=past) for each in claim(*a, **k)])
    finish(sessions, attempt)
    assert rounds(sessions) == 1
    ((headers, body),) = receiver.got
    assert headers["webhook-timestamp"] == str(int(past.timestamp()))
    assert headers["webhook-signature"] == signed(hook["secret"], headers, body)


def test_an_event_of_a_job_is_sent_signed_and_once(
    receiver: Receiver, client: TestClient, sessions: Sessions, attempt: Attempt
) -> None:
    hook = hooked(client, receiver.url, ["job.succeeded", "job.failed"])
    with sessions.begin() as session:
        attempts.add_event(session, attempt, "evolved", {"grown": 5})
    assert rounds(sessions) == 0
    finish(sessions, attempt)
    assert rounds(sessions) == 1
    ((headers, body),) = receiver.got
    assert headers["webhook-signature"] == signed(hook["secret"], headers, body)
    assert (headers["path"], headers["Content-Type"]) == ("/hook?x=1", "application/json")
    assert headers["Host"].startswith("receiver.example:")
    message = json.loads(body)
    event = client.get(f"/jobs/{attempt.job_id}/events").json()["data"][-1]
    assert (message["type"], message["data"]["job_id"], message["data"]["event_id"]) == (
        "job.succeeded",
        attempt.job_id,
        event["id"],
    )
    (delivery,) = deliveries(client, hook)
    assert (delivery["id"], delivery["state"], delivery["due_at"]) == (headers["webhook-id"], "succeeded", None)
    assert [(entry["status"], entry["text"]) for entry in delivery["log"]] == [(200, "so so")]


def test_an_event_that_is_rolled_back_is_not_sent(
    receiver: Receiver, client: TestClient, sessions: Sessions, attempt: Attempt
) -> None:
    hooked(client, receiver.url)
    with sessions() as session:
        attempts.release(session, attempt)
        session.rollback()
    assert rounds(sessions) == 0


def test_another_tenant_receives_nothing(
    receiver: Receiver, new_client: NewClient, client: TestClient, sessions: Sessions, attempt: Attempt
) -> None:
    hooked(new_client("theirs"), receiver.url)
    finish(sessions, attempt)
    assert rounds(sessions) == 0


def test_a_failed_delivery_is_retried_for_days_and_then_fails(
    receiver: Receiver, client: TestClient, sessions: Sessions
) -> None:
    hook = hooked(client, receiver.url)
    receiver.status = 500
    client.post(f"/webhooks/{hook['id']}/test")
    for number in range(len(RETRY_DELAYS) + 1):
        assert rounds(sessions) == 1
        (delivery,) = deliveries(client, hook)
        assert [entry["status"] for entry in delivery["log"]] == [500] * (number + 1)
        make_due(sessions)
    assert delivery["state"] == "failed"
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    assert len({body for _, body in receiver.got}) == 1
    assert client.get(f"/webhooks/{hook['id']}").json()["failing_since"]
    receiver.status = 200
    client.post(f"/webhooks/{hook['id']}/test")
    rounds(sessions)
    assert client.get(f"/webhooks/{hook['id']}").json()["failing_since"] is None


def test_a_sender_that_dies_only_delays_a_delivery(receiver: Receiver, client: TestClient, sessions: Sessions) -> None:
    hook = hooked(client, receiver.url)
    client.post(f"/webhooks/{hook['id']}/test")
    with sessions.begin() as session:
        (dead,) = webhooks.claim(session, 8)
        (until,) = session.scalars(select(WebhookDelivery.due_at - func.now()))
    assert until == timedelta(seconds=webhooks.CLAIM_SECONDS)
    assert rounds(sessions) == 0
    make_due(sessions)
    assert rounds(sessions) == 1
    with sessions.begin() as session:
        webhooks.record_result(session, dead, webhooks.DeliveryResult(500, "late"))
    (delivery,) = deliveries(client, hook)
    assert (delivery["state"], len(delivery["log"])) == ("succeeded", 1)


def test_an_unexpected_error_of_a_call_is_recorded_as_a_failed_try(
    client: TestClient, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> DeliveryResult:
        raise RuntimeError("password=x")

    monkeypatch.setattr(webhook_sender, "call", fail)
    hook = hooked(client, "https://example.com/")
    client.post(f"/webhooks/{hook['id']}/test")
    assert rounds(sessions) == 1
    (delivery,) = deliveries(client, hook)
    assert [entry["text"] for entry in delivery["log"]] == ["An internal error of the service prevented this delivery."]


def test_an_error_of_the_database_does_not_cancel_the_deliveries_that_run(
    receiver: Receiver, client: TestClient, sessions: Sessions
) -> None:
    class Disconnected(WebhookSender):
        def _claim(self, running: Sequence[webhooks.PendingDelivery]) -> list[webhooks.PendingDelivery]:
            if running:
                raise OperationalError("SELECT 1", {}, Exception("the connection was lost"))
            return super()._claim(running)

    hook = hooked(client, receiver.url)
    client.post(f"/webhooks/{hook['id']}/test")
    assert Disconnected(sessions, LOOPBACK, known).poll() == 1
    assert [each["state"] for each in deliveries(client, hook)] == ["succeeded"]


def test_senders_share_the_work(receiver: Receiver, client: TestClient, sessions: Sessions) -> None:
    for _ in range(10):
        client.post(f"/webhooks/{hooked(client, receiver.url)['id']}/test")
    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(lambda _: rounds(sessions), range(3))) >= 10
    rounds(sessions)
    sent = [headers["webhook-id"] for headers, _ in receiver.got]
    assert len(sent) == len(set(sent)) == 10


def test_a_webhook_that_only_fails_is_disabled_and_can_be_enabled(
    receiver: Receiver, client: TestClient, sessions: Sessions
) -> None:
    hook = hooked(client, receiver.url)
    path, receiver.status = f"/webhooks/{hook['id']}", 500
    client.post(f"{path}/test")
    rounds(sessions)
    assert client.get(path).json()["disabled_at"] is None
    with sessions.begin() as session:
        session.execute(update(Webhook).values(failing_since=func.now() - webhooks.DISABLED_AFTER))
    make_due(sessions)
    rounds(sessions)
    assert client.get(path).json()["disabled_at"]
    make_due(sessions)
    assert rounds(sessions) == 0
    problem(client.post(f"{path}/test"), 409, "conflict")
    receiver.status = 200
    assert client.post(f"{path}/enable").json()["disabled_at"] is None
    assert rounds(sessions) == 1


def test_a_webhook_that_is_disabled_is_sent_nothing_until_it_is_enabled(
    receiver: Receiver, client: TestClient, sessions: Sessions, attempt: Attempt
) -> None:
    hook = hooked(client, receiver.url)
    client.post(f"/webhooks/{hook['id']}/test")
    since = client.post(f"/webhooks/{hook['id']}/disable").json()["disabled_at"]
    assert since
    assert client.post(f"/webhooks/{hook['id']}/disable").json()["disabled_at"] == since
    finish(sessions, attempt)
    assert rounds(sessions) == 0
    client.post(f"/webhooks/{hook['id']}/enable")
    assert rounds(sessions) == 1
    assert [json.loads(body)["type"] for _, body in receiver.got] == ["webhook.test"]


def test_a_receiver_that_is_gone_is_disabled_at_once(
    receiver: Receiver, client: TestClient, sessions: Sessions
) -> None:
    hook, receiver.status = hooked(client, receiver.url), 410
    client.post(f"/webhooks/{hook['id']}/test")
    rounds(sessions)
    assert client.get(f"/webhooks/{hook['id']}").json()["disabled_at"]


def test_after_a_rotation_both_secrets_sign_for_a_day(
    receiver: Receiver, client: TestClient, sessions: Sessions
) -> None:
    hook = hooked(client, receiver.url)
    path = f"/webhooks/{hook['id']}"
    fresh = client.post(f"{path}/rotate").json()
    assert fresh["secret"] != hook["secret"]
    client.post(f"{path}/test")
    rounds(sessions)
    for hours in (23, 2):
        with sessions.begin() as session:
            earlier = Webhook.old_secret_until - timedelta(hours=hours)
            session.execute(update(Webhook).values(old_secret_until=earlier))
        client.post(f"{path}/test")
        rounds(sessions)
    *both, (last, other) = receiver.got
    for headers, body in both:
        expected = [signed(each["secret"], headers, body) for each in (fresh, hook)]
        assert headers["webhook-signature"].split() == expected
    assert last["webhook-signature"] == signed(fresh["secret"], last, other)


def test_a_redirect_is_not_followed(receiver: Receiver, client: TestClient, sessions: Sessions) -> None:
    hook, receiver.status, receiver.location = hooked(client, receiver.url), 307, receiver.url
    client.post(f"/webhooks/{hook['id']}/test")
    rounds(sessions)
    assert len(receiver.got) == 1
    assert deliveries(client, hook)[0]["log"][0]["status"] == 307


@pytest.mark.parametrize("known", [True, False])
def test_a_name_of_an_internal_address_is_never_called_and_does_not_differ_from_an_unknown_name(
    receiver: Receiver, client: TestClient, sessions: Sessions, *, known: bool
) -> None:
    hook = hooked(client, receiver.url if known else "http://unknown.invalid/")
    client.post(f"/webhooks/{hook['id']}/test")
    rounds(sessions, [])
    assert receiver.got == []
    (entry,) = deliveries(client, hook)[0]["log"]
    assert entry["status"] is None
    assert entry["text"] == ADDRESS_REFUSED


def test_a_name_is_resolved_once_and_the_checked_address_is_called(receiver: Receiver) -> None:
    addresses = iter(["127.0.0.1"])
    assert call(receiver.url, lambda _: [next(addresses)]).status == 200
    assert len(receiver.got) == 1
    with socket.create_server(("127.0.0.2", receiver.server_address[1])):
        # A second look-up would give the second address.
        addresses = iter(["127.0.0.1", "127.0.0.2"])
        assert call(receiver.url, lambda _: [next(addresses)]).status == 200
    assert len(receiver.got) == 2


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "http://",
        "http://user:pass@example.com/",
        "http://example.com/#x",
        "http://example.com:99999/",
        "http://exa mple.com/",
        "http://[::1/",
        "http://127.0.0.1/",
        "http://2130706433/",
        "http://0x7f.1:8000/",
        "https://[::ffff:10.0.0.1]/",
        "http://169.254.169.254/latest/meta-data",
    ],
)
def test_a_url_that_could_never_be_called_is_rejected(url: str, client: TestClient) -> None:
    assert problem(client.post("/webhooks", json={"url": url}), 422, "invalid_request")["param"] == "url"
    assert client.get("/webhooks").json() == {"data": []}


def test_an_unknown_event_type_is_rejected(client: TestClient) -> None:
    body = {"url": "https://example.com/", "events": ["job.succeeded", "job.exploded"]}
    report = problem(client.post("/webhooks", json=body), 422, "invalid_request")
    assert report["param"] == "events.1"


def test_a_deleted_webhook_is_gone_with_its_deliveries(
    receiver: Receiver, client: TestClient, sessions: Sessions
) -> None:
    hook = hooked(client, receiver.url)
    client.post(f"/webhooks/{hook['id']}/test")
    with sessions.begin() as session:
        (delivery,) = webhooks.claim(session, 8)
    assert client.delete(f"/webhooks/{hook['id']}").json()["id"] == hook["id"]
    problem(client.get(f"/webhooks/{hook['id']}"), 404, "not_found")
    with sessions.begin() as session:
        webhooks.record_result(session, delivery, DeliveryResult(200, ""))
    assert rounds(sessions) == 0


def test_old_deliveries_are_deleted_once_they_are_finished(
    receiver: Receiver, client: TestClient, sessions: Sessions
) -> None:
    hook = hooked(client, receiver.url)
    for _ in range(2):
        client.post(f"/webhooks/{hook['id']}/test")
    with sessions.begin() as session:
        (delivery,) = webhooks.claim(session, 1)
        webhooks.record_result(session, delivery, DeliveryResult(200, ""))
    with sessions.begin() as session:
        session.execute(update(WebhookDelivery).values(created_at=func.now() - timedelta(days=29)))
        assert webhooks.delete_old(session, 1000) == 0
        session.execute(update(WebhookDelivery).values(created_at=func.now() - timedelta(days=31)))
        assert webhooks.delete_old(session, 1000) == 1
    assert [delivery["state"] for delivery in deliveries(client, hook)] == ["pending"]
