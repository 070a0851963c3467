"""Browsers without a browser: clients that keep cookies, and send forms as the pages give them."""

import html
import re
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from core.access import keys
from core.access.keys import Scope
from tests.api.conftest import Json, NewClient

ROOT = "/dashboard"


class Browser(TestClient):
    """Follows no redirect, so that tests see them; speaks plain HTTP to the host `testserver`."""

    def show(self, path: str) -> str:
        """A page's text, which must be there."""
        answer = self.get(ROOT + path)
        assert answer.status_code == 200, (path, answer.status_code, answer.headers.get("location"), answer.text)
        return answer.text

    def csrf(self) -> str:
        found = re.search(r'name="csrf" value="([^"]+)"', self.show("/"))
        assert found
        return found[1]

    def submit(self, path: str, fields: Json | None = None, **more: Any) -> Any:
        """A form of a page of ours."""
        return self.post(ROOT + path, data={"csrf": self.csrf(), **(fields or {})}, **more)


NewBrowser = Callable[..., Browser]


@pytest.fixture
def secret(new_client: NewClient, sessions: sessionmaker[Session]) -> Callable[..., str]:
    """Makes keys. It needs the running app of `new_client`."""

    def make(tenant: str = "ours", scope: Scope = Scope.ADMIN) -> str:
        with sessions.begin() as session:
            return keys.issue(session, tenant, "a browser", scope)[1]

    return make


@pytest.fixture
def new_browser(app: FastAPI, client: TestClient, secret: Callable[..., str]) -> NewBrowser:
    """Makes browsers that are signed in."""

    def make(tenant: str = "ours", scope: Scope = Scope.ADMIN) -> Browser:
        browser = Browser(app, follow_redirects=False, raise_server_exceptions=False)
        browser.portal = client.portal
        answer = browser.post(f"{ROOT}/sign-in", data={"key": secret(tenant, scope)})
        assert answer.status_code == 303, answer.text
        return browser

    return make


@pytest.fixture
def browser(new_browser: NewBrowser) -> Browser:
    return new_browser()


def visible(page: str) -> str:
    """A page's text without its tags."""
    return html.unescape(re.sub(r"<[^>]+>", " ", page))
