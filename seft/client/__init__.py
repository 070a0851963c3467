"""The Python client of the service: `Client` blocks, `AsyncClient` awaits.

It needs neither torch nor the server's code.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seft.client.http import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> Any:
    """Import the client classes on first use, so that `seft --help` does not load the HTTP library."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from seft.client import http

    return getattr(http, name)
