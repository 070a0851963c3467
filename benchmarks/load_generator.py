"""Open-loop load generator: sends requests on a random schedule and does not wait for responses.

The time of a request is measured from the moment when it was due, even if it had to wait for a free connection. So a
server that stalls for a while gets worse times for every request that was due in that time.
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
    """An HTTP request to send."""

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
        """Send a request and return the response. Its time is measured from `due`, a value of `time.perf_counter`.

        If `due` is None, it is measured from now.
        """
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
    """Send a request repeatedly for `seconds`, on average `rate` times per second. Returns all responses.

    The gaps between requests are drawn from an exponential distribution.
    """
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
    """Return the smallest of `values` that is not below `fraction` of them. For example, 0.5 gives the median."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]
