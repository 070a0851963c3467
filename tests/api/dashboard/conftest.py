"""HTTP clients that act as a browser: they keep cookies and submit the forms of the pages."""

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
    """A client that does not follow redirects, so that tests see them. It uses plain HTTP to the host `testserver`."""

    def show(self, path: str) -> str:
        """Return the HTML of a page. The page must exist."""
        response = self.get(ROOT + path)
        details = (path, response.status_code, response.headers.get("location"), response.text)
        assert response.status_code == 200, details
        return response.text

    def csrf(self) -> str:
        match = re.search(r'name="csrf" value="([^"]+)"', self.show("/"))
        assert match
        return match[1]

    def submit(self, path: str, fields: Json | None = None, **more: Any) -> Any:
        """Submit a form with the CSRF token."""
        return self.post(ROOT + path, data={"csrf": self.csrf(), **(fields or {})}, **more)


NewBrowser = Callable[..., Browser]


@pytest.fixture
def secret(new_client: NewClient, sessions: sessionmaker[Session]) -> Callable[..., str]:
    """Return a function that creates API keys. Needs the running app of `new_client`."""

    def make(tenant: str = "ours", scope: Scope = Scope.ADMIN) -> str:
        with sessions.begin() as session:
            return keys.issue(session, tenant, "a browser", scope)[1]

    return make


@pytest.fixture
def new_browser(app: FastAPI, client: TestClient, secret: Callable[..., str]) -> NewBrowser:
    """Return a function that creates signed-in browsers."""

    def make(tenant: str = "ours", scope: Scope = Scope.ADMIN) -> Browser:
        browser = Browser(app, follow_redirects=False, raise_server_exceptions=False)
        browser.portal = client.portal
        response = browser.post(f"{ROOT}/sign-in", data={"key": secret(tenant, scope)})
        assert response.status_code == 303, response.text
        return browser

    return make


@pytest.fixture
def browser(new_browser: NewBrowser) -> Browser:
    return new_browser()


def visible(page: str) -> str:
    """Return the text of a page without its tags."""
    return html.unescape(re.sub(r"<[^>]+>", " ", page))
