"""A running server, a browser, and a person in front of it. Jobs live by `tests.browser.lives`."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Browser, BrowserContext, Page
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
from tests.browser.lives import Life
from tests.hollow import write_hollow

ALWAYS = os.environ.get("CI", "").lower() in {"1", "true"}
TENANT = "acme"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium.opened() as opened:
        if opened is None:
            words = "No browser: Chromium is not installed, apt-get and Playwright's download brought none."
            if ALWAYS:
                pytest.fail(words)
            pytest.skip(words)
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
        """A model that passes the door."""
        if not (self.models / name).exists():
            write_hollow(self.models / name)
        return name

    def add_job(self, **spec: object) -> str:
        asked = {"model": "tiny", "dataset": self.dataset, "sparsity": 0.6, "repair": {"steps": 100}, **spec}
        made = JobSpec.model_validate(asked)
        with self.sessions.begin() as session:
            return jobs.create(session, TENANT, made, None, made.fingerprint())[0].id

    def life(self) -> Life:
        """The job that waits longest, taken up."""
        return Life(self.sessions, self.storage)


@pytest.fixture
def site(settings: Settings, tmp_path: Path) -> Iterator[Site]:
    models = tmp_path / "models"
    app = make_app(settings.model_copy(update={"model_roots": [models]}))
    services = app.state.services
    with served(app) as url:
        with services.sessions.begin() as session:
            _, secret = keys.issue(session, TENANT, "laptop", Scope.ADMIN)
            content = datasets.Content(sha256="ab" * 32, bytes=1_048_576, records=812, format=Format.TEXT)
            dataset = datasets.add(session, TENANT, "support.jsonl", content).id
        made = Site(url, secret, settings, services.sessions, services.storage, dataset, models)
        made.add_model("tiny")
        yield made


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The app behind a real server, in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@dataclass
class Person:
    """Somebody with a browser."""

    site: Site
    context: BrowserContext
    page: Page
    complaints: list[str] = field(default_factory=list)
    """What the browser's console said that it should not: errors, and violations of the policy."""

    def go(self, path: str) -> Page:
        self.page.goto(f"{self.site.url}/dashboard{path}")
        return self.page

    def sign_in(self) -> Page:
        page = self.go("/")
        page.fill("#key", self.site.secret)
        page.click("text=Sign in >> nth=-1")
        page.wait_for_url(f"{self.site.url}/dashboard/")
        return page


NewPerson = Callable[..., Person]


@pytest.fixture
def new_person(browser: Browser, site: Site) -> Iterator[NewPerson]:
    """Makes people; at the end nobody's console has an error in it that was not expected."""
    people: list[Person] = []

    def make(**more: object) -> Person:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **more})  # type: ignore[arg-type]
        context.set_default_timeout(15_000)
        person = Person(site, context, context.new_page())
        person.page.on("console", lambda said: person.complaints.append(said.text) if said.type == "error" else None)
        person.page.on("pageerror", lambda error: person.complaints.append(str(error)))
        people.append(person)
        return person

    yield make
    for person in people:
        person.context.close()
        assert [said for said in person.complaints if "status of 422" not in said] == []


@pytest.fixture
def person(new_person: NewPerson) -> Person:
    made = new_person()
    made.sign_in()
    return made
