"""A running server, a browser and a user. `tests.browser.simulated_jobs` plays the worker."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect
from sqlalchemy.orm import Session, sessionmaker

from api.app import make_app
from core.access import keys
from core.access.keys import Scope
from core.datasets import datasets
from core.infra.storage import Storage
from core.jobs import jobs
from core.settings import Settings
from core.specs import JobSpec
from seft.data.records import Format
from tests.browser import chromium
from tests.browser.simulated_jobs import SimulatedJob
from tests.hollow import write_hollow
from tests.serving import serving_app

IN_CI = os.environ.get("CI", "").lower() in {"1", "true"}
TENANT = "acme"
expect.set_options(timeout=20_000)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium.open_browser() as opened:
        if opened is None:
            message = "No browser: Chromium is not installed, and neither apt-get nor Playwright could install it."
            if IN_CI:
                pytest.fail(message)
            pytest.skip(message)
        yield opened


@dataclass
class Site:
    """A running server with one tenant."""

    url: str
    secret: str
    settings: Settings
    sessions: sessionmaker[Session]
    storage: Storage
    dataset: str = ""
    models: Path = field(default_factory=Path)

    def add_model(self, name: str) -> str:
        """Add a model that the API accepts."""
        if not (self.models / name).exists():
            write_hollow(self.models / name)
        return name

    def add_job(self, **spec: object) -> str:
        fields = {"model": "tiny", "dataset": self.dataset, "sparsity": 0.6, "repair": {"steps": 100}, **spec}
        job_spec = JobSpec.model_validate(fields)
        with self.sessions.begin() as session:
            return jobs.create(session, TENANT, job_spec, None, job_spec.fingerprint()).id

    def issue_key(self, name: str) -> str:
        """Return the secret of a new key."""
        with self.sessions.begin() as session:
            return keys.issue(session, TENANT, name, Scope.ADMIN)[1]

    def claim_job(self) -> SimulatedJob:
        """Claim the next job of the queue."""
        return SimulatedJob(self.sessions, self.storage)


@pytest.fixture
def site(settings: Settings, tmp_path: Path) -> Iterator[Site]:
    models = tmp_path / "models"
    app = make_app(settings.model_copy(update={"model_roots": [models]}))
    services = app.state.services
    with serving_app(app, access_log=False) as url:
        with services.sessions.begin() as session:
            _, secret = keys.issue(session, TENANT, "laptop", Scope.ADMIN)
            content = datasets.Content(sha256="ab" * 32, bytes=1_048_576, records=812, format=Format.TEXT)
            dataset = datasets.add(session, TENANT, "support.jsonl", content).id
        new_site = Site(url, secret, settings, services.sessions, services.storage, dataset, models)
        new_site.add_model("tiny")
        yield new_site


@dataclass
class User:
    """A user with a browser."""

    site: Site
    context: BrowserContext
    page: Page
    console_errors: list[str] = field(default_factory=list)
    """Errors in the browser's console, with violations of the content security policy."""

    def go(self, path: str) -> Page:
        self.page.goto(f"{self.site.url}/dashboard{path}")
        return self.page

    def sign_in(self) -> Page:
        page = self.go("/")
        page.fill("#key", self.site.secret)
        page.click("text=Sign in >> nth=-1")
        page.wait_for_url(f"{self.site.url}/dashboard/")
        return page


NewUser = Callable[..., User]


@pytest.fixture
def new_user(browser: Browser, site: Site) -> Iterator[NewUser]:
    """Return a function that creates users. At the end, fail if a console has an unexpected error."""
    users: list[User] = []

    def make(**more: object) -> User:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **more})  # type: ignore[arg-type]
        context.set_default_timeout(60_000)
        user = User(site, context, context.new_page())
        user.page.on(
            "console", lambda message: user.console_errors.append(message.text) if message.type == "error" else None
        )
        user.page.on("pageerror", lambda error: user.console_errors.append(str(error)))
        users.append(user)
        return user

    yield make
    for user in users:
        user.context.close()
    for user in users:
        assert unexpected(user.console_errors) == []


def unexpected(errors: list[str]) -> list[str]:
    """Return the errors other than answers 422, and requests that a newer one of their element replaced (`hx-sync`).

    htmx reports such a request twice.
    """
    found: list[str] = []
    for error in errors:
        if "htmx:sendAbort" in error and found and "htmx:afterRequest" in found[-1]:
            found.pop()
        elif "status of 422" not in error:
            found.append(error)
    return found


@pytest.fixture
def user(new_user: NewUser) -> User:
    signed_in = new_user()
    signed_in.sign_in()
    return signed_in
