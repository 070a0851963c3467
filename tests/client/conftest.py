"""A scripted server, and every law of the client tried on both: the one that waits and the one that awaits."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from client.http import AsyncClient, Client
from client.steps import flow
from tests.client.servers import Script, serving

PAUSES = (0.01, 0.01)


class Awaited:
    """An AsyncClient that looks like a Client."""

    def __init__(self, portal: BlockingPortal, client: AsyncClient) -> None:
        self.portal, self.client = portal, client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def answered(*arguments: Any, **named: Any) -> Any:
            made = getattr(self.client, name)(*arguments, **named)
            return [row async for row in made] if isinstance(getattr(AsyncClient, name), flow) else await made

        return lambda *arguments, **named: self.portal.call(lambda: answered(*arguments, **named))


@pytest.fixture
def script() -> Iterator[Script]:
    server = Script()
    with serving(server):
        yield server


@pytest.fixture(params=["waiting", "awaiting"])
def client(script: Script, request: pytest.FixtureRequest) -> Iterator[Client]:
    if request.param == "waiting":
        with Client(script.url, "seft_key", pauses=PAUSES) as client:
            yield client
        return
    with start_blocking_portal() as portal:
        awaiting = portal.call(lambda: made(script.url))
        yield cast("Client", Awaited(portal, awaiting))
        portal.call(awaiting.close)


async def made(url: str) -> AsyncClient:
    return AsyncClient(url, "seft_key", pauses=PAUSES)
