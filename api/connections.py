"""The connection of a request: the network that it comes from, its form, and work that ends when the client leaves."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TypeVar

import anyio
from anyio import CancelScope
from fastapi import Request
from starlette.datastructures import FormData
from starlette.requests import ClientDisconnect

from api.limits import LimitError
from core.errors import Code, Flaw, ProblemError

Result = TypeVar("Result")
UNKNOWN = "unknown"
"""The network of all clients whose address is no IP address."""


def network_of(request: Request) -> str:
    """Return the network that a request comes from: an IPv4 address, or the /64 network of an IPv6 address.

    A host chooses its own addresses inside a /64 network, so a limit per IPv6 address would limit nothing.
    """
    host = request.client.host if request.client else ""
    try:
        address = ip_address(host)
    except ValueError:
        return UNKNOWN
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or ip_network((address, 64), strict=False))
    return host


@asynccontextmanager
async def read_form(request: Request, *, max_fields: int) -> AsyncIterator[FormData]:
    """Read a form with at most one file. Raises INVALID_REQUEST if the charset of its header does not exist."""
    async with AsyncExitStack() as stack:
        try:
            form = await stack.enter_async_context(request.form(max_files=1, max_fields=max_fields))
        except UnicodeError:  # starlette handles only a name that it can look up
            header = request.headers["content-type"]
            flaw = Flaw("Content-Type", "must have no charset but utf-8", header[:80], "Leave the charset out.")
            raise ProblemError(Code.INVALID_REQUEST, "The charset of the form is unknown.", (flaw,)) from None
        yield form


async def while_connected(request: Request, work: Callable[[], Awaitable[Result]]) -> Result:
    """Return the result of `work()`. If the client leaves first, cancel the work and raise ClientDisconnect.

    Also cancels the work if the request has a body that exceeds a limit, and raises that LimitError. A thread cannot be
    cancelled: if the work runs in a thread, this function waits until the thread ends.
    """
    results: list[Result] = []
    errors: list[Exception] = []
    async with anyio.create_task_group() as group:
        group.start_soon(_cancel_when_disconnected, request, group.cancel_scope, errors)
        try:
            results.append(await work())
        except Exception as error:  # a task group would put it into an ExceptionGroup
            errors.append(error)
        group.cancel_scope.cancel()
    if results:
        return results[0]
    raise errors[0] if errors else ClientDisconnect


async def _cancel_when_disconnected(request: Request, scope: CancelScope, errors: list[Exception]) -> None:
    """Cancel the scope when the client has left, or when its body exceeds a limit. Append that error to `errors`."""
    try:
        while (await request.receive())["type"] != "http.disconnect":
            pass
    except LimitError as error:
        errors.append(error)
    scope.cancel()
