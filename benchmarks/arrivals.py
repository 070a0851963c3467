"""Requests that arrive on a schedule of their own, whatever became of those before them.

A request's time runs from the moment at which it was to arrive, not from that at which a connection was free for it: a
server that stalls is charged for all who came meanwhile.
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
    """What is sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, and after how many seconds; status 0 where nothing did."""

    status: int
    body: bytes
    seconds: float


class Caller:
    """Sends requests over one connection, which is opened anew after an error."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def send(self, request: Request, due: float | None = None) -> Answer:
        """The answer; its time runs from `due`, a moment of `time.perf_counter`, or from now."""
        due = time.perf_counter() if due is None else due
        try:
            self._connection.request(request.method, request.path, request.body, request.headers)
            answer = self._connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return Answer(0, b"", time.perf_counter() - due)
        return Answer(answer.status, body, time.perf_counter() - due)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def arrive(port: int, request: Request, *, rate: float, seconds: float, seed: int = 0) -> list[Answer]:
    """The answers to requests of independent callers: exponential gaps, `rate` a second in the mean."""
    mine = threading.local()
    gaps = random.Random(seed)
    with ExitStack() as callers, ThreadPoolExecutor(CONNECTIONS) as pool:

        def send(due: float) -> Answer:
            if not hasattr(mine, "caller"):
                mine.caller = callers.enter_context(closing(Caller(port)))
            caller: Caller = mine.caller
            return caller.send(request, due)

        sent, due = [], time.perf_counter() + 0.1
        end = due + seconds
        while (due := due + gaps.expovariate(rate)) < end:
            time.sleep(max(0.0, due - time.perf_counter()))
            sent.append(pool.submit(send, due))
        return [each.result() for each in sent]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not exceeded by this share of them."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
