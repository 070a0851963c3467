"""Sessions of a browser: which cookies still open the dashboard after signing out or signing in again."""

from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker

from api.dashboard.visitors import COOKIE
from core.access import sign_ins
from core.tables import SignIn
from tests.api.dashboard.conftest import ROOT, Browser, NewBrowser, new_browser, secret

__all__ = ["new_browser", "secret"]


def statuses(browser: Browser, *tokens: str) -> list[int]:
    """Return the status of a page for each of the cookies."""
    found = []
    for token in tokens:
        browser.cookies.clear()
        found.append(browser.get(f"{ROOT}/", headers={"Cookie": f"{COOKIE}={token}"}).status_code)
    return found


def test_signing_out_with_the_previous_cookie_ends_the_session_of_the_new_one_too(
    new_browser: NewBrowser, sessions: sessionmaker[Session]
) -> None:
    browser = new_browser()
    old, csrf = browser.cookies[COOKIE], browser.csrf()
    with sessions.begin() as session:
        session.execute(update(SignIn).values(rotated_at=func.now() - sign_ins.ROTATION - timedelta(seconds=1)))
    browser.show("/")
    new = browser.cookies[COOKIE]
    assert new != old
    assert statuses(browser, new, old) == [200, 200]
    browser.cookies.clear()
    answer = browser.post(f"{ROOT}/sign-out", data={"csrf": csrf}, headers={"Cookie": f"{COOKIE}={old}"})
    assert answer.headers["location"] == f"{ROOT}/sign-in"
    assert statuses(browser, new, old) == [303, 303]


def test_signing_in_again_ends_the_session_of_the_browser(
    new_browser: NewBrowser, secret: Callable[..., str], sessions: sessionmaker[Session]
) -> None:
    browser = new_browser()
    first = browser.cookies[COOKIE]
    assert browser.post(f"{ROOT}/sign-in", data={"key": secret()}).status_code == 303
    second = browser.cookies[COOKIE]
    assert statuses(browser, first, second) == [303, 200]
    with sessions.begin() as session:
        assert session.scalar(select(func.count()).select_from(SignIn)) == 1
