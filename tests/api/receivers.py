"""Receivers of webhooks on loopback: one that stores requests, and one that sends a byte now and then."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.serving import Quiet, serving

DRIPS = {
    "a head": ("http", b"HTTP/1.1 200 OK\r\nX-Long: "),
    "a body": ("http", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
    "nothing": ("https", b""),
    "a TLS handshake": ("https", b"\x16\x03\x03\x40\x00"),
}
"""What a receiver can drip: the scheme of its URL, and the bytes that it sends first."""


class Receiver(ThreadingHTTPServer):
    """Stores requests and responds with `status`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.location, self.text = 200, "", b"so so"
        self.got: list[tuple[dict[str, str], str]] = []

    @property
    def url(self) -> str:
        return f"http://receiver.example:{self.server_address[1]}/hook?x=1"


class _Handler(Quiet, BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.got.append(({**dict(self.headers), "path": self.path}, body))
        self.send_response(self.server.status)
        self.send_header("Location", self.server.location)
        self.send_header("Content-Length", str(len(self.server.text)))
        self.end_headers()
        self.wfile.write(self.server.text)

    do_GET = do_POST  # noqa: N815


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run a receiver that stores requests."""
    with serving(Receiver()) as server:
        yield server


class Dripping:
    """A receiver that accepts connections, sends `head`, and then one byte now and then."""

    def __init__(self, head: bytes, *, drips: bool = True) -> None:
        self.head, self.drips = head, drips
        self.end = threading.Event()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def _accept(self) -> None:
        while not self.end.is_set():
            connection = self.server.accept()[0]
            self.threads.append(threading.Thread(target=self._drip, args=[connection], daemon=True))
            self.threads[-1].start()

    def _drip(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.sendall(self.head)
            while not self.end.wait(0.1):
                connection.sendall(b"x" if self.drips else b"")

    def close(self) -> None:
        self.end.set()
        socket.create_connection(("127.0.0.1", self.port)).close()
        for thread in self.threads:
            thread.join()
        self.server.close()


@contextmanager
def dripping(head: bytes, *, drips: bool = True) -> Iterator[Dripping]:
    """Run a receiver that drips."""
    receiver = Dripping(head, drips=drips)
    try:
        yield receiver
    finally:
        receiver.close()
