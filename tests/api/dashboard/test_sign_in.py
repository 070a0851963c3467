"""Signing in and out: the cookie, its rotation and its end; requests that other sites forge."""

from collections.abc import Callable
from datetime import timedelta
from http.cookies import SimpleCookie
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from api.dashboard.visitors import COOKIE
from core.access import sign_ins
from core.access.keys import Scope
from core.access.rates import Limiter
from core.settings import Settings
from core.tables import ApiKey, SignIn
from tests.api.dashboard.conftest import ROOT, Browser, NewBrowser

Sessions = sessionmaker[Session]


def cookie_of(answer: Any) -> Any:
    return SimpleCookie(answer.headers["set-cookie"])[COOKIE]


def age(sessions: Sessions, **columns: timedelta) -> None:
    """Make all sign-ins older."""
    with sessions.begin() as session:
        session.execute(update(SignIn).values({name: func.now() - by for name, by in columns.items()}))


def test_the_address_of_the_service_leads_to_the_door_and_through_it_back(
    app: FastAPI, client: TestClient, secret: Callable[..., str]
) -> None:
    browser = Browser(app, follow_redirects=False)
    assert browser.get("/").headers["location"] == "/dashboard/"
    answer = browser.get("/dashboard/jobs?status=failed")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/dashboard/sign-in?back=%2Fjobs%3Fstatus%3Dfailed"
    form = {"key": f" {secret()} ", "back": "/jobs?status=failed"}
    assert browser.post("/dashboard/sign-in", data=form).headers["location"] == "/dashboard/jobs?status=failed"
    assert browser.get("/dashboard/jobs?status=failed").status_code == 200


@pytest.mark.parametrize("back", ["//evil.example", "/\\evil.example", "https://evil.example", ""])
def test_the_way_back_leads_to_no_other_host(
    app: FastAPI, client: TestClient, secret: Callable[..., str], back: str
) -> None:
    answer = Browser(app, follow_redirects=False).post("/dashboard/sign-in", data={"key": secret(), "back": back})
    assert answer.headers["location"] == "/dashboard/"


def test_the_cookie_is_out_of_reach_and_is_no_key(
    app: FastAPI, client: TestClient, secret: Callable[..., str], sessions: Sessions
) -> None:
    key = secret()
    plain = Browser(app, follow_redirects=False).post("/dashboard/sign-in", data={"key": key})
    secure = Browser(app, base_url="https://testserver", follow_redirects=False).post(
        "/dashboard/sign-in", data={"key": key}
    )
    for answer, https in ((plain, ""), (secure, True)):
        cookie = cookie_of(answer)
        assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "lax", ROOT)
        assert cookie["secure"] == https
        assert key not in answer.headers["set-cookie"]
    token = cookie_of(plain).value
    with sessions.begin() as session:
        assert token not in {row.sha256 for row in session.scalars(select(SignIn))}
        assert token not in {row.csrf for row in session.scalars(select(SignIn))}


def test_a_wrong_key_opens_nothing(app: FastAPI, client: TestClient) -> None:
    browser = Browser(app, follow_redirects=False)
    for wrong in ("seft_wrong", "", "\0", "é"):
        answer = browser.post("/dashboard/sign-in", data={"key": wrong})
        assert answer.status_code == 422
        assert "unknown or revoked" in answer.text
        assert "set-cookie" not in answer.headers


def test_signing_out_ends_the_session_for_whoever_has_the_cookie(browser: Browser, app: FastAPI) -> None:
    token = browser.cookies[COOKIE]
    assert browser.submit("/sign-out").headers["location"] == "/dashboard/sign-in"
    thief = Browser(app, cookies={COOKIE: token}, follow_redirects=False)
    thief.portal = browser.portal
    assert thief.get("/dashboard/").status_code == 303


def test_a_revoked_key_ends_the_sessions_that_it_opened(browser: Browser, sessions: Sessions) -> None:
    assert browser.get("/dashboard/").status_code == 200
    with sessions.begin() as session:
        session.execute(update(ApiKey).where(ApiKey.name == "a browser").values(revoked_at=func.now()))
    assert browser.get("/dashboard/").status_code == 303


def test_the_token_is_replaced_while_it_is_used_and_the_old_one_lives_on_for_a_moment(
    browser: Browser, sessions: Sessions
) -> None:
    old = browser.cookies[COOKIE]
    age(sessions, rotated_at=sign_ins.ROTATION + timedelta(seconds=1))
    new = cookie_of(browser.get("/dashboard/")).value
    assert new != old
    for token in (new, old):
        browser.cookies.clear()
        answer = browser.get("/dashboard/", headers={"Cookie": f"{COOKIE}={token}"})
        assert answer.status_code == 200
        assert "set-cookie" not in answer.headers
    age(sessions, rotated_at=sign_ins.GRACE + timedelta(seconds=1))
    assert browser.get("/dashboard/", headers={"Cookie": f"{COOKIE}={old}"}).status_code == 303
    assert browser.get("/dashboard/", headers={"Cookie": f"{COOKIE}={new}"}).status_code == 200


@pytest.mark.parametrize("column", ["rotated_at", "created_at"])
def test_a_session_ends_by_itself(
    browser: Browser, sessions: Sessions, secret: Callable[..., str], column: str
) -> None:
    limit = sign_ins.IDLE if column == "rotated_at" else sign_ins.LIFE
    age(sessions, **{column: limit - timedelta(minutes=1)})
    assert browser.get("/dashboard/").status_code == 200
    age(sessions, **{column: limit + timedelta(minutes=1)})
    assert browser.get("/dashboard/").status_code == 303
    with sessions.begin() as session:
        assert sign_ins.begin(session, secret())
    with sessions.begin() as session:
        assert session.scalar(select(func.count()).select_from(SignIn)) == 1, "what has run out is swept away"


FORMS = [
    "/sign-out",
    "/jobs",
    "/jobs/estimate",
    "/datasets",
    "/keys",
    "/keys/key_1/revoke",
    "/jobs/job_1/cancel",
    "/webhooks",
    "/webhooks/hook_1/rotate",
    "/webhooks/hook_1/delete",
    "/webhooks/hook_1/test",
]


@pytest.mark.parametrize("path", FORMS)
def test_no_form_is_taken_that_is_not_of_this_sign_in(browser: Browser, new_browser: NewBrowser, path: str) -> None:
    for csrf in ({}, {"csrf": "x"}, {"csrf": new_browser().csrf()}):
        answer = browser.post(ROOT + path, data=csrf)
        assert answer.status_code == 403, path
        assert "another sign-in" in answer.text


@pytest.mark.parametrize("path", [*FORMS, "/sign-in"])
@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}])
def test_what_another_sites_page_sends_is_not_done(browser: Browser, path: str, headers: dict[str, str]) -> None:
    answer = browser.submit(path, headers=headers)
    assert answer.status_code == 403
    assert "another site" in answer.text


def test_a_page_that_polls_is_told_to_load_anew_when_nobody_is_signed_in(app: FastAPI) -> None:
    browser = Browser(app, follow_redirects=False)
    answer = browser.get("/dashboard/jobs", headers={"HX-Request": "true"})
    assert (answer.status_code, answer.headers["hx-refresh"]) == (401, "true")


def test_a_cookie_opens_the_pages_and_not_the_api(browser: Browser) -> None:
    assert browser.get("/jobs").status_code == 401


def test_scopes_hold_on_pages_too(new_browser: NewBrowser, job_id: str) -> None:
    reader = new_browser(scope=Scope.READ)
    assert reader.get("/dashboard/keys").status_code == 403
    assert reader.get("/dashboard/jobs/new").status_code == 403
    for path in ("/jobs", "/datasets", f"/jobs/{job_id}/cancel", "/webhooks", "/webhooks/hook_1/test"):
        assert reader.submit(path).status_code == 403
    page = reader.show(f"/jobs/{job_id}")
    assert "New job" not in reader.show("/")
    assert f"/jobs/{job_id}/cancel" not in page
    assert new_browser(scope=Scope.WRITE).get("/dashboard/keys").status_code == 403


def test_requests_of_a_browser_count_like_those_of_its_key(
    browser: Browser, settings: Settings, sessions: Sessions
) -> None:
    with sessions.begin() as session:
        key = session.scalars(select(ApiKey).where(ApiKey.name == "a browser")).one()
    slow = Limiter(settings.model_copy(update={"rate_limit": 0.01}))
    slow.take(key.id)  # as if it had sent a hundred seconds' worth of requests
    slow.close()
    answer = browser.get("/dashboard/")
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 60
