"""Uploads in parts through a slow connection with TLS."""

import socket
import ssl
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest
from typing_extensions import override

from seft.client import Client
from tests.seft.client.servers import Script, serving
from tests.serving import Quiet
from tests.tls import self_signed

PIECE = 1 << 20
PIECES = 12
PAUSE_SECONDS, TIMEOUT_SECONDS = 0.2, 1.0
"""The client writes all pieces in more than twice the timeout, but the connection never stands still for as long."""


class SlowStore(ThreadingHTTPServer):
    """Object storage with TLS that reads a piece of each object, then waits."""

    def __init__(self, certificate: Path) -> None:
        super().__init__(("127.0.0.1", 0), SlowHandler)
        self.received: list[bytes] = []
        # A large buffer would take the whole object at once.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.socket = context.wrap_socket(self.socket, server_side=True)

    @override
    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that end their connection."""


class SlowHandler(Quiet, BaseHTTPRequestHandler):
    server: SlowStore

    def do_PUT(self) -> None:
        content = b""
        while len(content) < int(self.headers["Content-Length"]):
            content += self.rfile.read(PIECE)
            time.sleep(PAUSE_SECONDS)
        self.server.received.append(content)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture(autouse=True)
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowStore]:
    """A slow storage whose certificate the client accepts."""
    certificate = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with serving(server := SlowStore(certificate)):
        yield server


def test_a_part_is_given_up_only_if_nothing_moves(
    script: Script, client: Client, slow: SlowStore, tmp_path: Path
) -> None:
    content = bytes(range(256)) * (PIECES * PIECE // 256)
    (data := tmp_path / "data.jsonl").write_bytes(content)
    link = f"https://localhost:{slow.server_address[1]}/part"
    script.will_answer({"code": "too_large"}, status=413)
    script.will_answer({"id": "imp_1", "parts": 1, "part_bytes": len(content)}, status=201)
    script.will_answer({"data": [{"number": 1, "bytes": len(content), "url": link}], "has_more": False})
    script.will_answer({"id": "imp_1"}, status=202)
    script.will_answer({"error": None, "dataset_id": "file_1"})
    script.will_answer({"id": "file_1"})
    getattr(client, "client", client)._links.timeout = httpx2.Timeout(TIMEOUT_SECONDS, read=60.0)
    assert client.upload_dataset(data)["id"] == "file_1"
    assert slow.received == [content]
