"""Sessions of a browser: which cookies still open the dashboard after signing out or signing in again."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker

from api.dashboard.visitors import COOKIE
from core.access import sign_ins
from core.tables import SignIn
from tests.api.dashboard.conftest import ROOT, Browser, NewBrowser, new_browser, secret
from tests.core.conftest import has_waiting_transaction
from tests.waiting import wait_for

__all__ = ["new_browser", "secret"]


def statuses(browser: Browser, *tokens: str) -> list[int]:
    """Return the status of a page for each of the cookies."""
    found = []
    for token in tokens:
        browser.cookies.clear()
        found.append(browser.get(f"{ROOT}/", headers={"Cookie": f"{COOKIE}={token}"}).status_code)
    return found


def make_rotation_due(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        session.execute(update(SignIn).values(rotated_at=func.now() - sign_ins.ROTATION - timedelta(seconds=1)))


def test_signing_out_with_the_previous_cookie_ends_the_session_of_the_new_one_too(
    new_browser: NewBrowser, sessions: sessionmaker[Session]
) -> None:
    browser = new_browser()
    old, csrf = browser.cookies[COOKIE], browser.csrf()
    make_rotation_due(sessions)
    browser.show("/")
    new = browser.cookies[COOKIE]
    assert new != old
    assert statuses(browser, new, old) == [200, 200]
    browser.cookies.clear()
    answer = browser.post(f"{ROOT}/sign-out", data={"csrf": csrf}, headers={"Cookie": f"{COOKIE}={old}"})
    assert answer.headers["location"] == f"{ROOT}/sign-in"
    assert statuses(browser, new, old) == [303, 303]


def test_one_of_two_concurrent_requests_replaces_the_token(
    new_browser: NewBrowser, sessions: sessionmaker[Session]
) -> None:
    browser = new_browser()
    old = browser.cookies[COOKIE]
    make_rotation_due(sessions)

    def token(session: Session) -> str:
        found = sign_ins.authenticate(session, old)
        assert found is not None
        return found.token

    def later_token() -> str:
        with sessions.begin() as session:
            return token(session)

    with ThreadPoolExecutor(1) as pool:
        with sessions.begin() as session:
            new = token(session)
            later = pool.submit(later_token)
            wait_for(lambda: has_waiting_transaction(sessions))
        assert (new == old, later.result() == old) == (False, True)
    assert statuses(browser, new, old) == [200, 200]


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
