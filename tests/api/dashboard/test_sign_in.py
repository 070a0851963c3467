"""Sign-in and sign-out: the cookie, its rotation and expiry, and forged requests of other sites."""

import re
from collections.abc import Callable
from datetime import timedelta
from http.cookies import SimpleCookie
from itertools import product
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from api.dashboard.visitors import COOKIE
from core.access import rates, sign_ins
from core.access.keys import Scope
from core.tables import ApiKey, SignIn
from tests.api.dashboard.conftest import ROOT, Browser, NewBrowser

Sessions = sessionmaker[Session]


def cookie_of(response: Any) -> Any:
    return SimpleCookie(response.headers["set-cookie"])[COOKIE]


def age(sessions: Sessions, **columns: timedelta) -> None:
    """Move the times of all sign-ins into the past."""
    with sessions.begin() as session:
        session.execute(update(SignIn).values({name: func.now() - by for name, by in columns.items()}))


def test_root_url_redirects_to_the_dashboard_and_sign_in_returns_to_the_requested_page(
    app: FastAPI, client: TestClient, secret: Callable[..., str]
) -> None:
    browser = Browser(app, follow_redirects=False)
    assert browser.get("/").headers["location"] == "/dashboard/"
    response = browser.get("/dashboard/jobs?status=failed")
    assert response.status_code == 303
    assert response.headers["location"] == "/dashboard/sign-in?back=%2Fjobs%3Fstatus%3Dfailed"
    form = {"key": f" {secret()} ", "back": "/jobs?status=failed"}
    assert browser.post("/dashboard/sign-in", data=form).headers["location"] == "/dashboard/jobs?status=failed"
    assert browser.get("/dashboard/jobs?status=failed").status_code == 200


def test_sign_in_never_redirects_to_another_host(app: FastAPI, client: TestClient, secret: Callable[..., str]) -> None:
    for back in ("//evil.example", "/\\evil.example", "https://evil.example", ""):
        form = {"key": secret(), "back": back}
        response = Browser(app, follow_redirects=False).post("/dashboard/sign-in", data=form)
        assert response.headers["location"] == "/dashboard/", back


def test_cookie_is_protected_and_is_not_the_key(
    app: FastAPI, client: TestClient, secret: Callable[..., str], sessions: Sessions
) -> None:
    key = secret()
    plain = Browser(app, follow_redirects=False).post("/dashboard/sign-in", data={"key": key})
    secure = Browser(app, base_url="https://testserver", follow_redirects=False).post(
        "/dashboard/sign-in", data={"key": key}
    )
    for response, https in ((plain, ""), (secure, True)):
        cookie = cookie_of(response)
        assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "lax", ROOT)
        assert cookie["secure"] == https
        assert key not in response.headers["set-cookie"]
    token = cookie_of(plain).value
    with sessions.begin() as session:
        assert token not in {row.sha256 for row in session.scalars(select(SignIn))}
        assert token not in {row.csrf for row in session.scalars(select(SignIn))}


def test_wrong_key_is_rejected(app: FastAPI, client: TestClient) -> None:
    browser = Browser(app, follow_redirects=False)
    for wrong in ("seft_wrong", "", "\0", "é"):
        response = browser.post("/dashboard/sign-in", data={"key": wrong})
        assert response.status_code == 422
        assert "unknown or revoked" in response.text
        assert "set-cookie" not in response.headers


def test_signing_out_ends_the_session_for_every_holder_of_the_cookie(browser: Browser, app: FastAPI) -> None:
    token = browser.cookies[COOKIE]
    assert browser.submit("/sign-out").headers["location"] == "/dashboard/sign-in"
    thief = Browser(app, cookies={COOKIE: token}, follow_redirects=False)
    thief.portal = browser.portal
    assert thief.get("/dashboard/").status_code == 303


@pytest.mark.parametrize("scope", Scope)
def test_key_of_any_scope_can_sign_out(new_browser: NewBrowser, scope: Scope) -> None:
    browser = new_browser(scope=scope)
    page = browser.get("/dashboard/")
    assert page.status_code == (403 if scope is Scope.METRICS else 200)
    csrf = re.search(r'/sign-out">\s*<input type="hidden" name="csrf" value="([^"]+)"', page.text)
    assert csrf, "the page has the button"
    assert browser.post("/dashboard/sign-out", data={"csrf": "x"}).status_code == 403
    answer = browser.post("/dashboard/sign-out", data={"csrf": csrf[1]})
    assert answer.headers["location"] == "/dashboard/sign-in"
    assert browser.get("/dashboard/").status_code == 303


def test_revoked_key_ends_its_sessions(browser: Browser, sessions: Sessions) -> None:
    assert browser.get("/dashboard/").status_code == 200
    with sessions.begin() as session:
        session.execute(update(ApiKey).where(ApiKey.name == "a browser").values(revoked_at=func.now()))
    assert browser.get("/dashboard/").status_code == 303


def test_token_is_rotated_and_the_old_one_stays_valid_for_a_short_time(browser: Browser, sessions: Sessions) -> None:
    old = browser.cookies[COOKIE]
    age(sessions, rotated_at=sign_ins.ROTATION + timedelta(seconds=1))
    new = cookie_of(browser.get("/dashboard/")).value
    assert new != old
    for token in (new, old):
        browser.cookies.clear()
        response = browser.get("/dashboard/", headers={"Cookie": f"{COOKIE}={token}"})
        assert response.status_code == 200
        assert "set-cookie" not in response.headers
    age(sessions, rotated_at=sign_ins.GRACE + timedelta(seconds=1))
    assert browser.get("/dashboard/", headers={"Cookie": f"{COOKIE}={new}"}).status_code == 200
    assert browser.get("/dashboard/", headers={"Cookie": f"{COOKIE}={old}"}).status_code == 303
    assert browser.get("/dashboard/", headers={"Cookie": f"{COOKIE}={new}"}).status_code == 200


def test_browser_that_never_got_the_new_token_gets_another_one(browser: Browser, sessions: Sessions) -> None:
    old = browser.cookies[COOKIE]
    age(sessions, rotated_at=sign_ins.ROTATION + timedelta(seconds=1))
    lost = cookie_of(browser.get("/dashboard/")).value
    age(sessions, rotated_at=sign_ins.GRACE + timedelta(seconds=1))
    browser.cookies.clear()
    new = cookie_of(browser.get("/dashboard/", headers={"Cookie": f"{COOKIE}={old}"})).value
    browser.cookies.clear()
    assert browser.get("/dashboard/", headers={"Cookie": f"{COOKIE}={new}"}).status_code == 200
    assert browser.get("/dashboard/", headers={"Cookie": f"{COOKIE}={lost}"}).status_code == 303


@pytest.mark.parametrize("column", ["rotated_at", "created_at"])
def test_session_expires(browser: Browser, sessions: Sessions, secret: Callable[..., str], column: str) -> None:
    limit = sign_ins.IDLE if column == "rotated_at" else sign_ins.LIFE
    age(sessions, **{column: limit - timedelta(minutes=1)})
    assert browser.get("/dashboard/").status_code == 200
    age(sessions, **{column: limit + timedelta(minutes=1)})
    assert browser.get("/dashboard/").status_code == 303
    with sessions.begin() as session:
        assert sign_ins.begin(session, secret())
    with sessions.begin() as session:
        assert session.scalar(select(func.count()).select_from(SignIn)) == 1, "expired sign-ins are deleted"


FORMS = [
    "/sign-out",
    "/jobs/new",
    "/jobs/estimate",
    "/datasets",
    "/datasets/file_1/delete",
    "/keys",
    "/keys/key_1/revoke",
    "/keys/hub-token",
    "/keys/hub-token/delete",
    "/jobs/job_1/cancel",
    "/webhooks",
    "/webhooks/hook_1/rotate",
    "/webhooks/hook_1/delete",
    "/webhooks/hook_1/test",
]


def test_form_of_another_sign_in_is_rejected(browser: Browser, new_browser: NewBrowser) -> None:
    forms: list[dict[str, str]] = [{}, {"csrf": "x"}, {"csrf": new_browser().csrf()}]
    for path, csrf in product(FORMS, forms):
        response = browser.post(ROOT + path, data=csrf)
        assert response.status_code == 403, path
        assert "another sign-in" in response.text


def test_page_about_a_refused_form_leads_back_to_the_form_and_does_not_blame_the_scope(browser: Browser) -> None:
    page = f"{ROOT}/jobs/new?dataset=file_1"
    answer = browser.post(f"{ROOT}/jobs/new", data={"csrf": "x"}, headers={"Referer": f"http://testserver{page}"})
    assert f'href="{page}">Back to the form<' in answer.text
    elsewhere = {"Sec-Fetch-Site": "cross-site", "Referer": "https://evil.example/"}
    for response in (answer, browser.post(f"{ROOT}/keys", headers=elsewhere)):
        assert "<h1>The form was not processed</h1>" in response.text
        assert "scope" not in response.text
    assert "Back to the form" not in response.text


def test_address_of_a_form_leads_to_the_page_with_the_form(browser: Browser, job_id: str) -> None:
    for path in FORMS:
        assert browser.get(ROOT + path, follow_redirects=True).status_code != 405, path
    for path, page in ((f"/jobs/{job_id}/push", f"/jobs/{job_id}"), ("/webhooks/hook_1/rotate", "/webhooks/hook_1")):
        assert browser.get(ROOT + path).headers["location"] == ROOT + page
    assert browser.get(f"{ROOT}/keys/key_1/revoke", follow_redirects=True).url.path == f"{ROOT}/keys"


def test_request_of_another_site_is_rejected(browser: Browser) -> None:
    others = {"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}
    for path, headers in product([*FORMS, "/sign-in"], others):
        response = browser.submit(path, headers=headers)
        assert response.status_code == 403, (path, headers)
        assert "another site" in response.text


def test_polling_page_is_reloaded_if_no_one_is_signed_in(app: FastAPI) -> None:
    browser = Browser(app, follow_redirects=False)
    response = browser.get("/dashboard/jobs", headers={"HX-Request": "true"})
    assert (response.status_code, response.headers["hx-refresh"]) == (401, "true")


def test_form_of_an_ended_session_is_answered_with_the_sign_in_page(app: FastAPI) -> None:
    browser = Browser(app, follow_redirects=False)
    response = browser.post("/dashboard/keys", headers={"Referer": "http://testserver/dashboard/keys"})
    assert response.status_code == 401
    assert 'name="back" value="/keys"' in response.text
    assert browser.post("/dashboard/keys", headers={"Accept": "application/json"}).text == ""


def test_cookie_does_not_authenticate_api_requests(browser: Browser) -> None:
    assert browser.get("/jobs").status_code == 401


def test_scopes_apply_to_pages(new_browser: NewBrowser, job_id: str) -> None:
    reader = new_browser(scope=Scope.READ)
    assert reader.get("/dashboard/keys").status_code == 403
    assert reader.get("/dashboard/jobs/new").status_code == 403
    for path in ("/jobs/new", "/datasets", f"/jobs/{job_id}/cancel", "/webhooks", "/webhooks/hook_1/test"):
        assert reader.submit(path).status_code == 403
    page = reader.show(f"/jobs/{job_id}")
    assert "New job" not in reader.show("/")
    assert f"/jobs/{job_id}/cancel" not in page
    assert new_browser(scope=Scope.WRITE).get("/dashboard/keys").status_code == 403


@pytest.fixture
def use_up(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that uses up the rate limit of a key for 70 seconds."""

    def use(key_id: str) -> None:
        limiter = app.state.services.limiter
        monkeypatch.setattr(limiter, "_rate", 0.01)  # so a request takes a hundred seconds
        monkeypatch.setattr(rates, "BURST_SECONDS", 130.0)
        assert limiter.take(key_id) == 0

    return use


def test_browser_requests_count_toward_the_rate_limit_of_the_key(
    browser: Browser, use_up: Callable[[str], None], sessions: Sessions
) -> None:
    with sessions.begin() as session:
        key = session.scalars(select(ApiKey).where(ApiKey.name == "a browser")).one()
    use_up(key.id)
    response = browser.get("/dashboard/")
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) > 60


def test_sign_ins_count_toward_the_rate_limit_of_the_key(
    browser: Browser, secret: Callable[..., str], use_up: Callable[[str], None], sessions: Sessions
) -> None:
    key = secret()
    with sessions.begin() as session:
        (newest,) = session.scalars(select(ApiKey.id).order_by(ApiKey.id.desc()).limit(1))
        before = session.scalar(select(func.count()).select_from(SignIn))
    use_up(newest)
    response = browser.post("/dashboard/sign-in", data={"key": key})
    assert response.status_code == 429
    with sessions.begin() as session:
        assert session.scalar(select(func.count()).select_from(SignIn)) == before
