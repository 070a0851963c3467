"""Serves one model over HTTP with OpenAI's API: chat completions, completions and the list of models.

It is made to try a model on one machine, so it has no keys, answers one request at a time, and listens on the local
address by default.
"""

import json
import logging
import re
import reprlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from typing import Any, cast
from urllib.parse import unquote

from seft.errors import AccelerateError
from seft.runtime.generate import Piece, TextModel
from seft.runtime.requests import DEFAULT_TOKENS, Answer, ChatRequest, CompletionRequest, Request, RequestError, parse

log = logging.getLogger(__name__)
BODY_BYTES = 4 << 20
IDLE_SECONDS = 60


class Server(ThreadingHTTPServer):
    """A server for one model. Requests wait for each other."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, model: TextModel, name: str, host: str, port: int) -> None:
        self.model, self.name, self.started = model, name, int(time.time())
        self.turn = threading.Lock()
        self.address_family = family(host)
        super().__init__((host, port), _Handler)

    def handle_error(self, *_: object) -> None:
        """Log an error. A caller that leaves before its answer is not an error. The address is never logged."""
        if not isinstance(sys.exception(), OSError):
            log.exception("a request failed")

    @property
    def url(self) -> str:
        """The address of the API."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def family(host: str) -> socket.AddressFamily:
    """Return the family of an address. A name counts as a name of an IPv4 address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS

    @property
    def app(self) -> Server:
        return cast("Server", self.server)

    @property
    def _path(self) -> str:
        return self.path.partition("?")[0]

    def do_GET(self) -> None:
        """Answer the list of models, and each model."""
        card = {"id": self.app.name, "object": "model", "created": self.app.started, "owned_by": "seft"}
        try:
            if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
                self._body()  # an unread body would be taken for the next request
            if self._path == "/v1/models":
                self._send(200, {"object": "list", "data": [card]})
            elif f"/v1/models/{self.app.name}" in (self._path, unquote(self._path)):
                self._send(200, card)
            else:
                raise _unknown_path(self.path)
        except RequestError as error:
            self._refuse(error)

    def do_HEAD(self) -> None:
        """Answer as for GET, without the body."""
        self.do_GET()

    def do_POST(self) -> None:
        """Answer a completion or a chat."""
        try:
            body = self._body()
            match self._path:
                case "/v1/chat/completions":
                    self._generate(parse(ChatRequest, body))
                case "/v1/completions":
                    self._generate(parse(CompletionRequest, body))
                case _:
                    raise _unknown_path(self.path)
        except RequestError as error:
            self._refuse(error)
        except OSError:
            self.close_connection = True  # the caller has gone, which ends the generation
        except Exception:
            log.exception("a request failed")
            self._refuse(_failed())

    def _body(self) -> bytes:
        """Return the body. A refused body is not read, and the connection ends. The statuses are those of RFC 9110."""
        length, chunked = self.headers.get("Content-Length", ""), "Transfer-Encoding" in self.headers
        if chunked or not length:
            status, found = 411, "it is chunked" if chunked else "there is none"
        elif not re.fullmatch("[0-9]+", length):
            status, found = 400, f"it is {reprlib.repr(length)}"
        elif len(length) > 9 or int(length) > BODY_BYTES:
            status, found = 413, f"it is {reprlib.repr(length)}"
        else:
            return self.rfile.read(int(length))
        self.close_connection = True
        raise RequestError(status, f"a body must have a Content-Length of up to {BODY_BYTES} bytes; {found}.")

    def _generate(self, request: Request) -> None:
        if request.model not in (None, self.app.name):
            message = f"model must be {self.app.name!r}, the only model here; it is {reprlib.repr(request.model)}."
            raise RequestError(404, message, param="model", code="model_not_found")
        prompt = self._prompt(request)
        room = self.app.model.room(prompt)
        most = request.most or (DEFAULT_TOKENS if room is None else max(1, min(DEFAULT_TOKENS, room)))
        if room is not None and room < most:
            message = (
                f"prompt and answer must fit {self.app.model.context} tokens; they are {len(prompt)} and {most}."
                " Shorten the prompt or lower max_tokens."
            )
            raise RequestError(400, message, code="context_length_exceeded")
        chat = isinstance(request, ChatRequest)
        answer = Answer(self.app.name, len(prompt), chat=chat)
        with self.app.turn:
            generated = self.app.model.stream(prompt, most, request.sampling, request.stop, chat=chat)
            pieces = self._while_connected(generated)
            if request.stream:
                self._stream(
                    answer, pieces, usage=bool(request.stream_options and request.stream_options.include_usage)
                )
            else:
                whole = list(pieces)
                text = "".join(piece.text for piece in whole)
                self._send(200, answer.whole(text, whole[-1].finish, whole[-1].tokens))

    def _prompt(self, request: Request) -> list[int]:
        model, param = self.app.model, "messages" if isinstance(request, ChatRequest) else "prompt"
        try:
            if isinstance(request, ChatRequest):
                prompt = model.encode_chat([message.plain() for message in request.messages])
            else:
                assert isinstance(request, CompletionRequest)
                prompt = model.encode(request.prompt)
        except AccelerateError as error:
            raise RequestError(400, str(error), param=param, code="invalid_value") from error
        if not prompt:
            message = f"{param} must have a token; the model's tokenizer finds none. Send more text."
            raise RequestError(400, message, param=param, code="invalid_value")
        return prompt

    def _while_connected(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Yield the pieces. Raises ConnectionAbortedError before the next one if the caller has gone."""
        self._require_caller()
        for piece in pieces:
            yield piece
            self._require_caller()

    def _require_caller(self) -> None:
        self.connection.settimeout(0)
        try:
            if not self.connection.recv(1, socket.MSG_PEEK):
                raise ConnectionAbortedError
        except BlockingIOError:
            pass  # the caller waits
        finally:
            self.connection.settimeout(IDLE_SECONDS)

    def _stream(self, answer: Answer, pieces: Iterator[Piece], *, usage: bool) -> None:
        """Send server-sent events. The end of the connection ends the body.

        The first piece is generated before the headers are sent, so that its failure gets an HTTP status. A later
        failure is sent as an event.
        """
        begin = [next(pieces)]
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            for number, piece in enumerate(chain(begin, pieces)):
                if piece.text or piece.finish or not number:
                    self._event(answer.chunk(piece.text, piece.finish, first=not number))
                tokens = piece.tokens
            if usage:
                self._event(answer.last(tokens))
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            raise
        except Exception:
            log.exception("a stream failed")
            self._event(_failed().body)

    def _event(self, data: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")

    def _refuse(self, error: RequestError) -> None:
        self._send(error.status, error.body)

    def _send(self, status: int, data: dict[str, Any]) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer requests that http.server refuses, such as unknown methods, with OpenAI's error object."""
        self.close_connection = True
        self._refuse(RequestError(code, message or explain or HTTPStatus(code).phrase))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (a name of http.server)
        """Log nothing: prompts and addresses do not belong in a log."""


def _failed() -> RequestError:
    return RequestError(500, "the server failed; its log has the reason.", code="internal_error")


def _unknown_path(path: str) -> RequestError:
    paths = "/v1/chat/completions, /v1/completions and /v1/models"
    return RequestError(404, f"the path must be one of {paths}; it is {reprlib.repr(path)}.", code="unknown_url")
