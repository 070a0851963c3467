"""Limits of a request: size, nesting and speed."""

import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from httpx2 import Client
from starlette.testclient import TestClient
from starlette.types import Message

from api import limits
from api.app import make_app
from api.limits import BODY_BYTES, JSON_DEPTH, SIGN_IN_BYTES
from api.protocol import HeadTimeoutProtocol
from core.access.keys import Scope
from tests.api.conftest import Json, NewClient, problem, serving
from tests.api.walk import make_world, operations
from tests.hollow import TEXTS

AS_JSON = {"Content-Type": "application/json"}


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def test_a_body_without_bounds_is_cut_off(client: TestClient) -> None:
    large = b" " * (BODY_BYTES + 1)
    for content in (large, iter([large[:-1], b" "])):
        report = problem(client.post("/jobs", content=content, headers=AS_JSON), 413, "too_large")
        assert (report["param"], str(BODY_BYTES) in report["detail"]) == ("body", True)
        assert report["errors"][0]["way_out"] == "Send less.", "a job cannot be sent as a file"
    for content in (large[:-1], iter([large[:-1]])):
        problem(client.post("/jobs", content=content, headers=AS_JSON), 422, "invalid_request")


def test_a_larger_upload_is_taken_after_the_operator_raised_the_setting_that_the_error_names(
    app: FastAPI, client: TestClient
) -> None:
    def sent(limits: dict[str, int]) -> Any:
        limited = make_app(app.state.services.settings.model_copy(update={"max_upload_bytes": 100, **limits}))
        with TestClient(limited, headers=dict(client.headers)) as inner:
            return inner.post("/datasets", files={"file": ("texts.jsonl", TEXTS)})

    report = problem(sent({}), 413, "too_large")
    (name,) = re.findall("SEFT_([A-Z_]+)", report["errors"][0]["way_out"])
    assert sent({name.lower(): 1 << 20}).status_code == 201, name


@pytest.mark.usefixtures("known_hub")
def test_no_json_body_may_nest_deeply_or_have_another_media_type(app: FastAPI, client: TestClient) -> None:
    world, taking = make_world(client), [each for each in operations(app) if each.example is not None]
    assert len(taking) >= 3
    for operation in taking:
        address = operation.path.format_map(world)
        for content in ('{"metadata": ' + nested(JSON_DEPTH) + "}", nested(100_000)):
            answer = client.request(operation.method, address, content=content, headers=AS_JSON)
            report = problem(answer, 422, "invalid_request")
            assert (report["param"], f"more than {JSON_DEPTH} nested levels" in report["detail"]) == ("body", True)
        answer = client.request(operation.method, address, content=nested(JSON_DEPTH), headers=AS_JSON)
        report = problem(answer, 422, "invalid_request")
        assert "nested levels" not in report["detail"]
        answer = client.request(operation.method, address, content="{}", headers={"Content-Type": "text/plain"})
        assert problem(answer, 415, "unsupported_media_type")["param"] == "Content-Type"


def test_a_json_body_in_another_encoding_is_rejected(client: TestClient) -> None:
    # In UTF-16, U+2200 has the byte of a quotation mark.
    body = ('{"a\u2200": ' + nested(JSON_DEPTH + 9) + "}").encode("utf-16-le")
    report = problem(client.post("/jobs", content=body, headers=AS_JSON), 422, "invalid_request")
    assert (report["param"], "not in UTF-8" in report["detail"]) == ("body", True)


def test_brackets_in_texts_do_not_count(client: TestClient, body: Json) -> None:
    for name in ('[{"[' * 12, "\\" * 40 + "[" * 20, "[" * 60):
        answer = client.post("/jobs", json=body | {"suffix": name[:64], "metadata": {"a": "[" * 500}})
        assert answer.status_code == 202, answer.text


def test_a_form_has_one_file_and_one_field_at_most(client: TestClient) -> None:
    line = b'{"text": "a"}\n{"text": "b"}\n'
    many = [("file", (str(number), line)) for number in range(200)]
    fields = {f"name{number}": "value" for number in range(200)}
    for form in ({"files": many}, {"files": many[:1], "data": fields}, {"files": many[:1], "data": {"a": "x" * 2**21}}):
        report = problem(client.post("/datasets", **form), 422, "invalid_request")
        assert report["param"] == "body"
    assert client.get("/datasets").json()["data"] == []


@pytest.mark.usefixtures("known_hub")
def test_no_body_is_parsed_before_the_key_is_known(app: FastAPI, client: TestClient, new_client: NewClient) -> None:
    world, reader = make_world(client), new_client("ours", Scope.READ)
    del client.headers["Authorization"]
    unknown = TestClient(app, headers={"Authorization": "Bearer seft_unknown"})
    for sender, status, code in (
        (client, 401, "unauthenticated"),
        (unknown, 401, "unauthenticated"),
        (reader, 403, "forbidden"),
    ):
        for operation in operations(app):
            if operation.example is not None:
                address = operation.path.format_map(world)
                problem(sender.request(operation.method, address, content="[", headers=AS_JSON), status, code)
    statuses = [
        client.post("/dashboard/sign-in", data={"key": "x" * size}).status_code for size in (SIGN_IN_BYTES, 100)
    ]
    assert statuses == [413, 422]


@pytest.fixture
def impatient(app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client of a real server whose timeouts are half a second."""
    monkeypatch.setattr(limits, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(HeadTimeoutProtocol, "head_seconds", 0.5)
    with serving(app, client) as connected:
        yield connected


def connect(server: Client) -> socket.socket:
    return socket.create_connection((server.base_url.host, server.base_url.port or 80), timeout=20)


def test_a_body_that_comes_too_slowly_is_given_up(impatient: Client) -> None:
    head = f"POST /jobs HTTP/1.1\r\nHost: x\r\nAuthorization: {impatient.headers['Authorization']}\r\n"
    for start in ("", '{"mod'):
        with connect(impatient) as slow:
            slow.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{start}".encode())
            response = b"".join(iter(lambda: slow.recv(65536), b""))
        status, _, report = response.partition(b"\r\n\r\n")
        assert status.startswith(b"HTTP/1.1 408 ")
        assert (json.loads(report)["code"], json.loads(report)["param"]) == ("too_slow", "body")
        assert json.loads(report)["errors"][0]["way_out"] == "Use a faster connection."


@pytest.mark.parametrize(("length", "status", "code"), [(10, 408, "too_slow"), (BODY_BYTES + 1, 413, "too_large")])
def test_a_wait_with_a_body_that_exceeds_a_limit_is_refused(
    length: int, status: int, code: str, impatient: Client, job_id: str
) -> None:
    """The operation has no body, so only the watch for the end of the connection reads it."""
    head = f"GET /jobs/{job_id}?wait=20 HTTP/1.1\r\nHost: x\r\nAuthorization: {impatient.headers['Authorization']}\r\n"
    with connect(impatient) as waiting:
        waiting.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
        answer = b"".join(iter(lambda: waiting.recv(65536), b""))
    head_of_answer, _, report = answer.partition(b"\r\n\r\n")
    assert head_of_answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert json.loads(report)["code"] == code


def test_a_body_that_drips_is_given_up(impatient: Client) -> None:
    head = f"POST /datasets HTTP/1.1\r\nHost: x\r\nAuthorization: {impatient.headers['Authorization']}\r\n"
    with connect(impatient) as slow:
        slow.sendall(f"{head}Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 9999\r\n\r\n".encode())
        slow.sendall(b'--b\r\nContent-Disposition: form-data; name="')
        slow.settimeout(0.1)
        response = b""
        while not response:
            slow.sendall(b"x")
            try:
                response = slow.recv(65536)
            except TimeoutError:
                continue
    assert response.startswith(b"HTTP/1.1 408 ")


def test_a_large_body_that_is_fast_enough_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PATIENCE_SECONDS", 0.05)
    parts = [b"x" * int(20 * limits.SLOWEST), b"y"]

    async def receive() -> Message:
        await anyio.sleep(0.2 if len(parts) == 1 else 0)
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def read() -> list[Message]:
        limited = limits.limited({"type": "http", "headers": []}, receive, 1 << 20)
        return [await limited() for _ in range(2)]

    assert [len(message["body"]) for message in anyio.run(read)] == [20 * limits.SLOWEST, 1]


def test_a_head_that_does_not_come_holds_no_connection(impatient: Client) -> None:
    for start in (b"", b"GET /livez HTTP/1.1\r\nHo"):
        with connect(impatient) as slow:
            slow.sendall(start)
            assert slow.recv(65536) == b""
    with connect(impatient) as slow:
        slow.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        response = b""
        while b"}" not in response:
            response += slow.recv(65536)
        slow.sendall(b"GET /li")
        assert slow.recv(65536) == b""


def drip(connection: socket.socket) -> None:
    """Send a byte now and then, until the server ends the connection."""
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)


@pytest.mark.parametrize("path", ["/jobs", "/dashboard/sign-in"])
def test_a_body_that_drips_after_its_response_holds_no_connection(path: str, impatient: Client) -> None:
    with connect(impatient) as slow:
        slow.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {BODY_BYTES}\r\n\r\n".encode())
        assert slow.recv(65536).startswith(b"HTTP/1.1 4")
        with pytest.raises(ConnectionError):
            drip(slow)


def test_the_rest_of_a_body_may_follow_its_response(impatient: Client) -> None:
    with connect(impatient) as one:
        one.sendall(b"POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
        assert one.recv(65536).startswith(b"HTTP/1.1 401 ")
        one.sendall(b"{}GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while b"HTTP/1.1 200 " not in received:
            part = one.recv(65536)
            assert part, "the connection was closed"
            received += part


def test_the_timeouts_are_for_the_request_and_not_for_the_response(impatient: Client) -> None:
    dataset = impatient.post("/datasets", files={"file": ("x", TEXTS)}).json()["id"]
    job = impatient.post("/jobs", json={"model": "tiny", "dataset": dataset, "sparsity": 0.5}).json()["id"]
    assert impatient.get(f"/jobs/{job}", params={"wait": 2}).json()["id"] == job
    with impatient.stream("GET", f"/jobs/{job}/events", headers={"Accept": "text/event-stream"}) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: job.created"
        time.sleep(1)
        impatient.post(f"/jobs/{job}/cancel")
        assert "event: job.cancelled" in list(lines)
