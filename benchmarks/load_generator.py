"""Open-loop load generator: requests are sent on a random schedule that does not wait for responses.

The time of a request starts when it was due, not when a connection was free for it. So a server that stalls is charged
for every request that was due in the meantime.
"""

import http.client
import math
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass

CONNECTIONS = 64


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response and the seconds until it was complete. The status is 0 if there was no response."""

    status: int
    body: bytes
    seconds: float


class Connection:
    """Sends requests over one connection, and reconnects after an error."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def send(self, request: Request, due: float | None = None) -> Response:
        """Return the response. Its time starts at `due`, a value of `time.perf_counter`, or now."""
        due = time.perf_counter() if due is None else due
        try:
            self._connection.request(request.method, request.path, request.body, request.headers)
            response = self._connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return Response(0, b"", time.perf_counter() - due)
        return Response(response.status, body, time.perf_counter() - due)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def send_at_rate(port: int, request: Request, *, rate: float, seconds: float, seed: int = 0) -> list[Response]:
    """Send a request repeatedly, with exponential gaps and on average `rate` per second. Returns the responses."""
    local = threading.local()
    gaps = random.Random(seed)
    with ExitStack() as connections, ThreadPoolExecutor(CONNECTIONS) as pool:

        def send(due: float) -> Response:
            if not hasattr(local, "connection"):
                local.connection = connections.enter_context(closing(Connection(port)))
            connection: Connection = local.connection
            return connection.send(request, due)

        sent, due = [], time.perf_counter() + 0.1
        end = due + seconds
        while (due := due + gaps.expovariate(rate)) < end:
            time.sleep(max(0.0, due - time.perf_counter()))
            sent.append(pool.submit(send, due))
        return [future.result() for future in sent]


def quantile(values: Sequence[float], fraction: float) -> float:
    """Return the smallest value that is at least as large as this fraction of the values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]
