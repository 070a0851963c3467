"""The webhook pages do the same as the JSON routes, and show a secret once."""

import re

from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from core import webhooks
from tests.api.dashboard.conftest import ROOT, Browser, NewBrowser, visible

SECRET = re.compile(r"whsec_[\w+/=]{40,}")


def test_webhook_is_created_rotated_tested_and_disabled_and_its_secret_is_shown_once(
    browser: Browser, client: TestClient, new_browser: NewBrowser, sessions: sessionmaker[Session]
) -> None:
    created = browser.submit(
        "/webhooks", {"url": " https://example.com/seft ", "events": ["job.failed", "job.succeeded"]}
    )
    hook = client.get("/webhooks").json()["data"][0]
    assert (hook["url"], hook["events"]) == ("https://example.com/seft", ["job.failed", "job.succeeded"])
    path = f"/webhooks/{hook['id']}"
    rotated = browser.submit(f"{path}/rotate")
    secrets = [SECRET.search(response.text) for response in (created, rotated)]
    assert len({match[0] for match in secrets if match}) == 2
    assert {response.headers["cache-control"] for response in (created, rotated)} == {"no-store"}
    assert not SECRET.search(browser.show(path) + browser.show("/webhooks"))

    assert browser.submit(f"{path}/test").headers["location"] == ROOT + path
    assert "not sent yet" in browser.show(path)
    with sessions.begin() as session:
        (delivery,) = webhooks.claim(session, 9)
        webhooks.record_result(session, delivery, webhooks.DeliveryResult(503, "<b>too busy</b>"))
    page = browser.show(path)
    assert "503: &lt;b&gt;too busy&lt;/b&gt;" in page
    assert ">failing<" in page
    assert "&#34;type&#34;: &#34;webhook.test&#34;" in page

    stranger = new_browser("theirs")
    for action in ("rotate", "test", "disable", "delete"):
        assert stranger.submit(f"{path}/{action}").status_code == 404
    assert browser.submit(f"{path}/disable").headers["location"] == ROOT + path
    assert ">disabled<" in browser.show("/webhooks")
    assert browser.submit(f"{path}/test").headers["location"] == f"{ROOT}{path}?refused=test"
    assert "is not possible: the webhook is disabled" in browser.show(f"{path}?refused=test")
    browser.submit(f"{path}/enable")
    assert client.get(path).json()["disabled_at"] is None
    assert browser.submit(f"{path}/explode").status_code == 404
    assert browser.submit(f"{path}/delete").headers["location"] == f"{ROOT}/webhooks"
    assert client.get(path).status_code == 404
    actions = [entry["action"] for entry in client.get("/audit").json()["data"]]
    expected = ("delete_webhook", "enable_webhook", "disable_webhook", "test_webhook", "rotate_webhook_secret")
    assert actions == [*expected, "create_webhook"]


def test_url_that_is_never_called_is_rejected_at_its_field(browser: Browser, client: TestClient) -> None:
    for url, expected in (
        ("http://127.0.0.1/", "must have a public address or one in SEFT_WEBHOOK_NETWORKS, not 127.0.0.1"),
        ("ftp://example.com", "should match pattern"),
        ("", "should match pattern"),
    ):
        response = browser.submit("/webhooks", {"url": url, "events": ["job.failed"]})
        assert response.status_code == 422
        assert expected in visible(response.text)
        assert f'value="{url}" required' in response.text
        assert 'value="job.failed" checked' in response.text
    assert client.get("/webhooks").json()["data"] == []
