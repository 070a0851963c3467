"""The pages of webhooks do what the JSON routes do, and show a secret once."""

import re

from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from core import webhooks
from core.webhooks import DeliveryResult
from tests.api.dashboard.conftest import ROOT, Browser, NewBrowser, visible

SECRET = re.compile(r"whsec_[\w+/=]{40,}")


def test_a_webhook_is_made_rotated_tested_and_disabled_and_its_secret_is_shown_once(
    browser: Browser, client: TestClient, new_browser: NewBrowser, sessions: sessionmaker[Session]
) -> None:
    made = browser.submit("/webhooks", {"url": " https://example.com/seft ", "events": ["job.failed", "job.succeeded"]})
    hook = client.get("/webhooks").json()["data"][0]
    assert (hook["url"], hook["events"]) == ("https://example.com/seft", ["job.failed", "job.succeeded"])
    path = f"/webhooks/{hook['id']}"
    rotated = browser.submit(f"{path}/rotate")
    secrets = [SECRET.search(answer.text) for answer in (made, rotated)]
    assert len({found[0] for found in secrets if found}) == 2
    assert {answer.headers["cache-control"] for answer in (made, rotated)} == {"no-store"}
    assert not SECRET.search(browser.show(path) + browser.show("/webhooks"))

    assert browser.submit(f"{path}/test").headers["location"] == ROOT + path
    assert "not tried yet" in browser.show(path)
    with sessions.begin() as session:
        (owed,) = webhooks.claim(session, 9)
        webhooks.record_result(session, owed, DeliveryResult(503, "<b>too busy</b>"))
    page = browser.show(path)
    assert "503: &lt;b&gt;too busy&lt;/b&gt;" in page
    assert ">failing<" in page
    assert "&#34;type&#34;: &#34;webhook.test&#34;" in page

    stranger = new_browser("theirs")
    for deed in ("rotate", "test", "disable", "delete"):
        assert stranger.submit(f"{path}/{deed}").status_code == 404
    assert browser.submit(f"{path}/disable").headers["location"] == ROOT + path
    assert ">disabled<" in browser.show("/webhooks")
    assert browser.submit(f"{path}/test").headers["location"] == f"{ROOT}{path}?refused=test"
    assert "came too late" in browser.show(f"{path}?refused=test")
    browser.submit(f"{path}/enable")
    assert client.get(path).json()["disabled_at"] is None
    assert browser.submit(f"{path}/explode").status_code == 404
    assert browser.submit(f"{path}/delete").headers["location"] == f"{ROOT}/webhooks"
    assert client.get(path).status_code == 404
    actions = [entry["action"] for entry in client.get("/audit").json()["data"]]
    deeds = ("delete_webhook", "enable_webhook", "disable_webhook", "test_webhook", "rotate_webhook_secret")
    assert actions == [*deeds, "create_webhook"]


def test_an_address_that_will_never_be_called_is_refused_beside_its_field(browser: Browser, client: TestClient) -> None:
    for url, told in (
        ("http://127.0.0.1/", "must be public, and leads to 127.0.0.1"),
        ("ftp://example.com", "should match pattern"),
        ("", "should match pattern"),
    ):
        answer = browser.submit("/webhooks", {"url": url, "events": ["job.failed"]})
        assert answer.status_code == 422
        assert told in visible(answer.text)
        assert f'value="{url}" required' in answer.text
        assert 'value="job.failed" checked' in answer.text
    assert client.get("/webhooks").json()["data"] == []
