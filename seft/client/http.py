"""The two clients of the service: `Client` blocks, `AsyncClient` awaits (on asyncio or trio).

Their methods are in `seft.client.operations`. A request is retried if the connection breaks or the service is busy
(`seft.client.retries`). The clients need neither torch nor the code of the server.
"""

import os
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Self, TypeVar

import httpx2
from typing_extensions import override

from seft.client.config import Address
from seft.client.drivers import TIMEOUT, AsyncDriver, Driver
from seft.client.errors import SetupError
from seft.client.operations import Operations
from seft.client.retries import PAUSES
from seft.client.steps import Awaiting, Blocking, Flow, Row, Steps, Walk

T = TypeVar("T")


class Client(Operations, Blocking):
    """Client of the service whose methods block.

    Address and key default to the environment variables SEFT_URL and SEFT_API_KEY. If a variable is not set, the value
    comes from the file that `seft login` writes.
    """

    def __init__(self, url: str | None = None, api_key: str | None = None, *, pauses: Sequence[float] = PAUSES) -> None:
        address = Address.resolve(url, api_key)
        self.url, self.pauses = address.url, pauses
        self._service = _made(httpx2.Client, base_url=address.url, headers=_headers(address))
        # A presigned link needs no key, and the object storage must not see the API key.
        self._links = _made(httpx2.Client)

    @override
    def run(self, steps: Steps[T]) -> T:
        with Driver(self._service, self._links) as driver:
            return driver.all(steps)

    @override
    def rows(self, flow: Flow[T]) -> Iterator[T]:
        walk = Walk(flow)
        with Driver(self._service, self._links) as driver:
            while (step := walk.step()) is not None:
                if isinstance(step, Row):
                    yield step.value
                    walk.answer(None)
                else:
                    driver.one(walk, step)

    def close(self) -> None:
        """Close the connections."""
        self._service.close()
        self._links.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(Operations, Awaiting):
    """Client of the service whose methods are awaited: `await client.job(…)`, `async for job in client.watch(…)`.

    Address and key have the defaults of `Client`.
    """

    def __init__(self, url: str | None = None, api_key: str | None = None, *, pauses: Sequence[float] = PAUSES) -> None:
        address = Address.resolve(url, api_key)
        self.url, self.pauses = address.url, pauses
        self._service = _made(httpx2.AsyncClient, base_url=address.url, headers=_headers(address))
        self._links = _made(httpx2.AsyncClient)

    @override
    async def run(self, steps: Steps[T]) -> T:
        async with AsyncDriver(self._service, self._links) as driver:
            return await driver.all(steps)

    @override
    async def rows(self, flow: Flow[T]) -> AsyncIterator[T]:
        walk = Walk(flow)
        async with AsyncDriver(self._service, self._links) as driver:
            while (step := walk.step()) is not None:
                if isinstance(step, Row):
                    yield step.value
                    walk.answer(None)
                else:
                    await driver.one(walk, step)

    async def close(self) -> None:
        """Close the connections."""
        await self._service.aclose()
        await self._links.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _headers(address: Address) -> dict[str, str]:
    return {"Authorization": f"Bearer {address.api_key}"}


def _made(kind: Callable[..., T], **words: Any) -> T:
    """Return an HTTP client. Raises SetupError if the environment has a proxy or certificates that cannot be used."""
    try:
        return kind(timeout=TIMEOUT, **words)
    except (ImportError, ValueError, OSError, httpx2.InvalidURL) as error:
        found = [name for name in os.environ if re.fullmatch(r"\w+_PROXY|SSL_CERT_(FILE|DIR)", name, re.IGNORECASE)]
        # The address of a proxy can have a password.
        shown = [f"{name}={os.environ[name]}" if name.startswith("SSL_") else name for name in sorted(found)]
        raise SetupError(
            f"The proxy or the certificates of the environment cannot be used: {str(error).rstrip('.')}."
            f" Correct or unset one of these variables: {', '.join(shown)}."
        ) from error
