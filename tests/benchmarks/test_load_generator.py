"""The load generator sends requests without waiting for earlier ones, and charges a wait to the server."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.load_generator import Connection, Request, quantile, send_at_rate
from tests.serving import Quiet, serving

TOGETHER = 20
REQUEST = Request("GET", "/", {})


class Stalled(ThreadingHTTPServer):
    """Sends no response before `TOGETHER` requests have arrived."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.remaining, self.enough = iter(range(TOGETHER - 1, -1, -1)), threading.Event()


class Handler(Quiet, BaseHTTPRequestHandler):
    server: Stalled
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if next(self.server.remaining, 0) == 0:
            self.server.enough.set()
        self.send_response(200 if self.server.enough.wait(20) else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def stalled() -> Iterator[Stalled]:
    with serving(Stalled()) as server:
        yield server


def test_requests_are_sent_while_none_has_a_response(stalled: Stalled) -> None:
    responses = send_at_rate(stalled.server_port, REQUEST, rate=200, seconds=0.3)
    assert len(responses) > TOGETHER
    assert {response.status for response in responses} == {200}


def test_the_time_of_a_request_starts_when_it_was_due(stalled: Stalled) -> None:
    stalled.enough.set()
    with closing(Connection(stalled.server_port)) as connection:
        assert connection.send(REQUEST, time.perf_counter() - 5).seconds >= 5


def test_the_status_is_zero_without_a_response() -> None:
    assert Connection(9).send(REQUEST).status == 0


def test_a_quantile_is_one_of_the_values() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile(values, 1), quantile([7.0], 0.5)) == (
        50,
        99,
        100,
        7,
    )
