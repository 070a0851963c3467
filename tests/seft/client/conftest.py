"""Fixtures: a scripted server, a real service, and a client that is once blocking and once asynchronous."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from anyio.from_thread import BlockingPortal, start_blocking_portal
from sqlalchemy.orm import Session, sessionmaker
from typer.testing import CliRunner, Result

from core.access.keys import Scope, issue
from core.infra.database import make_engine, make_sessions
from core.infra.storage import Storage
from core.settings import Settings
from local.servers import Servers
from local.stack import Api
from seft.client import AsyncClient, Client
from seft.client.cli import app
from seft.client.steps import flow
from tests import databases
from tests.conftest import as_owner, own_settings
from tests.hollow import write_hollow
from tests.hub import hub
from tests.seft.client.servers import Script, serving
from tests.serving import running_api
from tests.worker.conftest import variables

PAUSES = (0.01, 0.01)


class BlockingAdapter:
    """Gives an AsyncClient the blocking interface of Client."""

    def __init__(self, portal: BlockingPortal, client: AsyncClient) -> None:
        self.portal, self.client = portal, client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            result = getattr(self.client, name)(*args, **kwargs)
            return [row async for row in result] if isinstance(getattr(AsyncClient, name), flow) else await result

        return lambda *args, **kwargs: self.portal.call(lambda: call(*args, **kwargs))


@pytest.fixture
def script() -> Iterator[Script]:
    server = Script()
    with serving(server):
        yield server


@pytest.fixture(params=["blocking", "asynchronous"])
def client(script: Script, request: pytest.FixtureRequest) -> Iterator[Client]:
    if request.param == "blocking":
        with Client(script.url, "seft_key", pauses=PAUSES) as client:
            yield client
        return
    with start_blocking_portal() as portal:
        asynchronous = portal.call(lambda: make_async_client(script.url))
        yield cast("Client", BlockingAdapter(portal, asynchronous))
        portal.call(asynchronous.close)


async def make_async_client(url: str) -> AsyncClient:
    return AsyncClient(url, "seft_key", pauses=PAUSES)


@dataclass(frozen=True)
class Service:
    """A running API process, its database and storage, and an API key."""

    url: str
    api_key: str
    sessions: sessionmaker[Session]
    storage: Storage


@dataclass(frozen=True)
class Running:
    """An API that the tests of a file share: its settings, the settings of the database's owner, and its models."""

    api: Api
    settings: Settings
    owner: Settings
    models: Path


@pytest.fixture(scope="module")
def running(servers: Servers, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """An API with one model, no worker, and a hub that knows one token."""
    folder = tmp_path_factory.mktemp("service")
    models = write_hollow(folder / "models" / "tiny").parent
    with own_settings(servers, template, folder) as settings, hub({}, {"hf_example": "acme"}) as endpoint:
        more = variables(settings.model_copy(update={"model_roots": [models]}))
        with running_api(folder / "api", {**more, "HF_ENDPOINT": endpoint}) as api:
            yield Running(api, settings, as_owner(servers, settings), models)


@pytest.fixture
def service(running: Running) -> Iterator[Service]:
    """The running API with an empty database, an empty queue, an empty bucket and a new key."""
    databases.empty(str(running.owner.database_url))
    with redis.Redis.from_url(str(running.settings.broker_url)) as client:
        client.flushdb()
    storage = Storage(running.settings)
    storage.delete(storage.keys(""))
    engine = make_engine(running.settings)
    sessions = make_sessions(engine)
    with sessions.begin() as session:
        _, secret = issue(session, "default", "tests", Scope.ADMIN)
    yield Service(running.api.url, secret, sessions, storage)
    engine.dispose()


class Shell:
    """A shell of a user who has logged in."""

    def __init__(self, service: Service, home: Path) -> None:
        self.service = service
        self.environment = {"XDG_CONFIG_HOME": str(home), "SEFT_URL": "", "SEFT_API_KEY": ""}
        result = self.run("login", "--url", service.url, typed=service.api_key)
        assert result.exit_code == 0, result.stderr

    def run(self, *words: str, typed: str = "") -> Result:
        return CliRunner().invoke(app, words, input=f"{typed}\n", env=self.environment)

    def json(self, *words: str) -> Any:
        result = self.run(*words, "--json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)


@pytest.fixture
def shell(service: Service, tmp_path: Path) -> Shell:
    return Shell(service, tmp_path / "home")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (path := tmp_path / "data.jsonl").write_text('{"text": "%s"}\n{"text": "two"}\n' % ("one " * 1024))
    return path


def create(shell: Shell, data: Path, *options: str) -> Any:
    words = ("--model", "tiny", "--dataset", str(data), "--sparsity", "0.6", *options)
    return shell.json("jobs", "create", *words)
