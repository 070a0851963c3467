"""Small HTTP servers whose behaviour a test scripts."""

import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.serving import Quiet, serving

__all__ = ["Script", "Store", "file_view", "serving"]


class Script(ThreadingHTTPServer):
    """Answers each request with the next scripted answer: status, headers and body. None closes the connection."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, dict[str, str], bytes] | None] = []
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.delay = 0.0
        """Seconds before each answer."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def will_answer(self, body: Any, status: int = 200, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        if status >= 400 and isinstance(body, dict) and "code" in body:
            headers = {"Content_Type": "application/problem+json", **headers}
        self.answers.append((status, {name.replace("_", "-"): value for name, value in headers.items()}, content))


class Handler(Quiet, BaseHTTPRequestHandler):
    server: Script

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path, dict(self.headers), body))
        answer = self.server.answers.pop(0)
        if answer is None:
            self.close_connection = True
            return
        time.sleep(self.server.delay)
        status, headers, content = answer
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815


class Store(ThreadingHTTPServer):
    """Object storage with one object behind a signed link. Serves ranges only, and can simulate network faults."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), StoreHandler)
        self.content, self.signature = content, 1
        self.ranges: list[tuple[int, int]] = []
        self.cuts: list[int] = []
        """Number of bytes after which the connection breaks, one for each of the next answers."""
        self.rejections: list[tuple[int, dict[str, str]]] = []
        self.stalled, self.resume = threading.Event(), threading.Event()
        self.stall_at: int | None = None
        """Start of the range whose answer stops at half until `resume` is set."""

    def file(self, name: str = "model.safetensors") -> dict[str, Any]:
        """Return the file as the API describes it, with a valid link."""
        url = f"http://127.0.0.1:{self.server_address[1]}/object?signature={self.signature}"
        return file_view(name, self.content, url)


class StoreHandler(Quiet, BaseHTTPRequestHandler):
    server: Store

    def do_GET(self) -> None:
        if self.server.rejections:
            return self.reject(*self.server.rejections.pop(0))
        if not self.path.endswith(f"signature={self.server.signature}") or "Authorization" in self.headers:
            return self.reject(403, {})
        if not (match := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))):
            return self.reject(400, {})
        first, last = int(match[1]), int(match[2])
        content = self.server.content[first : last + 1]
        self.server.ranges.append((first, last + 1))
        cut = self.server.cuts.pop(0) if self.server.cuts else None
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if first == self.server.stall_at:
            self.wfile.write(content[: len(content) // 2])
            self.server.stalled.set()
            self.server.resume.wait(60)
            self.close_connection = True
            return None
        self.wfile.write(content[:cut])
        self.close_connection = cut is not None
        return None

    def reject(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()


def file_view(name: str, content: bytes, url: str = "http://nowhere") -> dict[str, Any]:
    """Return a file as the API describes it."""
    sha256 = hashlib.sha256(content).hexdigest()
    return {"name": name, "size": len(content), "sha256": sha256, "url": url, "head_url": url}
