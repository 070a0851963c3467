"""Requests that arrive do not wait for those before them, and a wait is charged to the server."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.arrivals import Caller, Request, arrive, quantile

TOGETHER = 20
ASKING = Request("GET", "/", {})


class Stalled(ThreadingHTTPServer):
    """Answers nobody before so many have come."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.came, self.enough = iter(range(TOGETHER - 1, -1, -1)), threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Stalled
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if next(self.server.came, 0) == 0:
            self.server.enough.set()
        self.send_response(200 if self.server.enough.wait(20) else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def stalled() -> Iterator[Stalled]:
    with Stalled() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_requests_arrive_while_none_is_answered(stalled: Stalled) -> None:
    answers = arrive(stalled.server_port, ASKING, rate=200, seconds=0.3)
    assert len(answers) > TOGETHER
    assert {answer.status for answer in answers} == {200}


def test_a_time_runs_from_the_moment_that_a_request_was_due_at(stalled: Stalled) -> None:
    stalled.enough.set()
    with closing(Caller(stalled.server_port)) as caller:
        assert caller.send(ASKING, time.perf_counter() - 5).seconds >= 5


def test_where_nobody_answers_the_status_is_nought() -> None:
    assert Caller(9).send(ASKING).status == 0


def test_a_quantile_is_one_of_the_values() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile(values, 1), quantile([7.0], 0.5)) == (
        50,
        99,
        100,
        7,
    )
