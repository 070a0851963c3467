"""The HTTP protocol of uvicorn with timeouts for clients that send slowly, so that they cannot hold a connection."""

import asyncio

import h11
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol


class HeadTimeoutProtocol(H11Protocol):
    """Close a connection if the headers of a request do not arrive in time, or the rest of a body after the response.

    While a request is processed, `api.limits` limits the time of its body. uvicorn itself only limits the time without
    any byte between two requests.
    """

    head_seconds = 30.0
    _head: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._head = self.loop.call_later(self.head_seconds, self.transport.close)

    @override
    def data_received(self, data: bytes) -> None:
        before = self.conn.their_state
        super().data_received(data)
        if self.conn.their_state is not before:
            self._stop()
        self._start_or_stop()

    @override
    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._start_or_stop()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _start_or_stop(self) -> None:
        """Run the timer while the server waits for headers, or for the rest of a body that was already answered."""
        if self.conn.their_state is not h11.IDLE and self.conn.our_state is not h11.DONE:
            self._stop()
        elif self._head is None:
            self._head = self.loop.call_later(self.head_seconds, self.transport.close)

    def _stop(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None
