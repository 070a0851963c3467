"""Performs the steps of client operations: `Driver` blocks, `AsyncDriver` awaits.

An operation is a generator of steps (`seft.client.steps`). The drivers do its I/O and make no decisions.
"""

import io
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar, assert_never

import anyio
import anyio.to_thread
import httpx2
from typing_extensions import override

from seft.client.errors import ClientError, Unreachable
from seft.client.steps import Open, Pause, Progress, Read, Reply, Request, Send, Step, Steps, Together, Walk, Work

T = TypeVar("T")
TIMEOUT = httpx2.Timeout(30.0, read=120.0)
"""Seconds. A large body is written in pieces, and the time to write counts for each piece."""
PIECE_BYTES = 1 << 16
UPLOAD_TIMEOUT = httpx2.Timeout(30.0, read=1800.0)
"""Seconds for a request with a file. The service answers after it has checked each record of the file."""


class _Stopped(Exception):  # noqa: N818 (no error)
    """Raised to end a parallel operation after another one has failed."""


class Driver:
    """Performs the steps of one operation, blocking, and keeps its open reply."""

    def __init__(self, service: httpx2.Client, links: httpx2.Client, stopped: threading.Event | None = None) -> None:
        self.service, self.links, self.stopped = service, links, stopped or threading.Event()
        self.opened = ExitStack()
        self.chunks: Iterator[bytes] = iter(())

    def all(self, steps: Steps[T]) -> T:
        """Perform all steps. Returns the result of the operation."""
        walk = Walk(steps)
        while not self.stopped.is_set() and (step := walk.step()) is not None:
            self.one(walk, step)
        if self.stopped.is_set():
            raise _Stopped
        return walk.result

    def one(self, walk: Walk[Any], step: Step) -> None:
        """Perform one step, and pass its result or its error to the operation."""
        with _failing(walk):
            walk.answer(self._perform(step))

    def _perform(self, step: Step) -> Any:
        match step:
            case Send(request):
                with _content(request, io.BytesIO) as content:
                    return _reply(request, self._web(request).request(request.method, request.path, **content))
            case Open(request):
                return self._open(request)
            case Read():
                return next(self.chunks, b"")
            case Pause(seconds):
                self.stopped.wait(seconds)
            case Work(call):
                return call()
            case Together(parts, at_once):
                self._together(parts, at_once)
            case _:
                assert_never(step)
        return None

    def _open(self, request: Request) -> Reply:
        self.opened.close()
        stream = self._web(request).stream(request.method, request.path, **_words(request))
        response = self.opened.enter_context(stream)
        if not response.is_success:
            response.read()
            return _reply(request, response)
        self.chunks = response.iter_raw()
        return _head(request, response)

    def _together(self, parts: Sequence[Steps[None]], at_once: int) -> None:
        stopped, waiting = threading.Event(), iter(parts)
        ends = queue.SimpleQueue[BaseException | None]()

        def work() -> None:
            try:
                for steps in waiting:
                    with Driver(self.service, self.links, stopped) as driver:
                        driver.all(steps)
            except BaseException as error:
                ends.put(error)
                # Set here, so that no other thread starts a part before the main thread sees the failure.
                stopped.set()
            else:
                ends.put(None)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(at_once, len(parts)))]
        for thread in threads:
            thread.start()
        try:
            for _ in threads:
                if error := ends.get():
                    raise error
        finally:
            # The threads are not joined, because a server may not answer for minutes. They ignore a later answer.
            stopped.set()

    def _web(self, request: Request) -> httpx2.Client:
        return self.links if request.is_link else self.service

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.close()


class AsyncDriver:
    """Performs the steps of one operation, awaiting, and keeps its open reply."""

    def __init__(self, service: httpx2.AsyncClient, links: httpx2.AsyncClient) -> None:
        self.service, self.links = service, links
        self.opened = AsyncExitStack()
        self.chunks: AsyncIterator[bytes] = _nothing()

    async def all(self, steps: Steps[T]) -> T:
        """Perform all steps. Returns the result of the operation."""
        walk = Walk(steps)
        while (step := walk.step()) is not None:
            await self.one(walk, step)
        return walk.result

    async def one(self, walk: Walk[Any], step: Step) -> None:
        """Perform one step, and pass its result or its error to the operation."""
        with _failing(walk):
            walk.answer(await self._perform(step))

    async def _perform(self, step: Step) -> Any:
        match step:
            case Send(request):
                with _content(request, _pieces) as content:
                    response = await self._web(request).request(request.method, request.path, **content)
                    return _reply(request, response)
            case Open(request):
                return await self._open(request)
            case Read():
                return await anext(self.chunks, b"")
            case Pause(seconds):
                await anyio.sleep(seconds)
            case Work(call):
                return await anyio.to_thread.run_sync(call)
            case Together(parts, at_once):
                await self._together(parts, at_once)
            case _:
                assert_never(step)
        return None

    async def _open(self, request: Request) -> Reply:
        await self.opened.aclose()
        stream = self._web(request).stream(request.method, request.path, **_words(request))
        response = await self.opened.enter_async_context(stream)
        if not response.is_success:
            await response.aread()
            return _reply(request, response)
        self.chunks = response.aiter_raw()
        return _head(request, response)

    async def _together(self, parts: Sequence[Steps[None]], at_once: int) -> None:
        limit, errors = anyio.Semaphore(at_once), list[ClientError | OSError]()

        async def run(steps: Steps[None]) -> None:
            async with limit, AsyncDriver(self.service, self.links) as driver:
                try:
                    await driver.all(steps)
                except (ClientError, OSError) as error:
                    errors.append(error)
                    group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for steps in parts:
                group.start_soon(run, steps)
        if errors:
            raise errors[0]

    def _web(self, request: Request) -> httpx2.AsyncClient:
        return self.links if request.is_link else self.service

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.opened.aclose()


class _Counted(io.FileIO):
    """File that reports how many of its bytes were read."""

    def __init__(self, path: Path, progress: Progress | None) -> None:
        super().__init__(path)
        self._progress, self._size = progress, path.stat().st_size

    @override
    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        if self._progress:
            self._progress(self.tell(), self._size)
        return content


@contextmanager
def _content(request: Request, in_pieces: Callable[[bytes], object]) -> Iterator[dict[str, Any]]:
    """Yield the keyword arguments that give httpx the body of a request. A file in it stays open meanwhile.

    `in_pieces` makes a body that httpx reads in pieces, because the timeout of a write is for the whole of a piece.
    """
    if request.content is not None:
        length = {"Content-Length": str(len(request.content))}
        sent = replace(request, headers={**request.headers, **length})
        yield {**_words(sent), "content": in_pieces(request.content)}
        return
    if request.file is None:
        yield {**_words(request), "json": request.json}
        return
    with _Counted(request.file, request.progress) as file:
        yield {**_words(request), "files": {"file": (request.file.name, file)}, "timeout": UPLOAD_TIMEOUT}


def _words(request: Request) -> dict[str, Any]:
    # An empty query would remove the query of a link.
    return {"params": dict(request.query) or None, "headers": dict(request.headers)}


def _reply(request: Request, response: httpx2.Response) -> Reply:
    return replace(_head(request, response), content=response.content)


def _head(request: Request, response: httpx2.Response) -> Reply:
    url = response.request.url
    return Reply(response.status_code, response.headers, b"", _host(url) if request.is_link else str(url))


@contextmanager
def _failing(walk: Walk[Any]) -> Iterator[None]:
    """Pass an error of the request in the `with` block to the operation."""
    try:
        yield
    except (httpx2.LocalProtocolError, httpx2.InvalidURL, UnicodeEncodeError) as error:
        walk.fail(ClientError(f"The request cannot be sent: {error}. Check the ids, names and keys in it."))
    except httpx2.RequestError as error:
        walk.fail(_unreachable(error))
    except ClientError as error:
        walk.fail(error)


def _unreachable(error: httpx2.RequestError) -> Unreachable:
    reason = str(error).rstrip(".") or type(error).__name__
    host = _host(error.request.url)
    if isinstance(error, httpx2.DecodingError):
        return Unreachable(f"{host} sent an answer that cannot be decoded: {reason}. Check the address.")
    return Unreachable(f"{host} does not answer: {reason}. Check the address, and that the service runs.")


def _host(url: httpx2.URL) -> str:
    """Return only scheme and host, because the path and the query of a link give access."""
    return str(url.copy_with(raw_path=b"/", username="", password="")).rstrip("/")


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), PIECE_BYTES):
        yield content[start : start + PIECE_BYTES]


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""
