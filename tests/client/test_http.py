"""Laws of the client, against a small HTTP server that does what each test tells it."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from client import http
from client.errors import ApiProblem, ClientError, IntegrityError
from client.http import Client

SPEC = {"model": "m", "dataset": "file_x", "sparsity": 0.6}


class Script(ThreadingHTTPServer):
    """Answers requests with the next scripted answer: a status, headers and a body; None hangs up without one."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, dict[str, str], bytes] | None] = []
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def will_answer(self, body: Any, status: int = 200, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.answers.append((status, {name.replace("_", "-"): value for name, value in headers.items()}, content))


class Handler(BaseHTTPRequestHandler):
    server: Script

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path, dict(self.headers), body))
        answer = self.server.answers.pop(0)
        if answer is None:
            self.close_connection = True
            return
        status, headers, content = answer
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_DELETE = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def script() -> Iterator[Script]:
    with Script() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client(script: Script, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(http, "PAUSES", (0.01, 0.01))
    with Client(script.url, "seft_key") as client:
        yield client


def test_a_call_is_repeated_when_the_connection_breaks_or_the_server_is_busy(script: Script, client: Client) -> None:
    script.answers.append(None)
    script.will_answer({"code": "unavailable"}, status=503, Retry_After="0")
    script.will_answer({"id": "job_1"}, status=202)
    assert client.create_job(SPEC)["id"] == "job_1"
    keys = {headers["Idempotency-Key"] for _, _, headers, _ in script.requests}
    assert len(script.requests) == 3
    assert len(keys) == 1


def test_two_calls_make_two_jobs_unless_they_share_a_key(script: Script, client: Client) -> None:
    for _ in range(4):
        script.will_answer({"id": "job_1"})
    client.create_job(SPEC)
    client.create_job(SPEC)
    client.create_job(SPEC, idempotency_key="mine")
    client.create_job(SPEC, idempotency_key="mine")
    keys = [headers["Idempotency-Key"] for _, _, headers, _ in script.requests]
    assert keys[0] != keys[1]
    assert keys[2:] == ["mine", "mine"]


def test_an_upload_is_whole_again_when_it_is_repeated(script: Script, client: Client, tmp_path: Path) -> None:
    (data := tmp_path / "data.jsonl").write_text('{"text": "all of it"}\n')
    script.will_answer({}, status=503)
    script.will_answer({"id": "file_1"})
    client.upload_dataset(data)
    assert all(b"all of it" in body for _, _, _, body in script.requests)


def test_a_refusal_names_each_flaw(script: Script, client: Client) -> None:
    flaw = {"param": "sparsity", "rule": "at most 0.99", "value": "1.2", "way_out": "0.6 is usual."}
    body = {"code": "invalid_request", "detail": "It is wrong.", "request_id": "req_1", "errors": [flaw]}
    script.will_answer(body, status=422)
    with pytest.raises(ApiProblem) as caught:
        client.create_job(SPEC)
    problem = caught.value
    assert (problem.status, problem.code, problem.request_id) == (422, "invalid_request", "req_1")
    assert str(problem) == "invalid_request: It is wrong.\n  sparsity: at most 0.99; it is 1.2. 0.6 is usual."
    assert len(script.requests) == 1


def test_a_call_whose_twin_is_still_being_served_is_repeated(script: Script, client: Client) -> None:
    script.will_answer({"code": "idempotency_in_flight"}, status=409, Retry_After="0")
    script.will_answer({"id": "job_1"}, status=202)
    assert client.create_job(SPEC)["id"] == "job_1"
    script.will_answer({"code": "conflict"}, status=409)
    with pytest.raises(ApiProblem, match="conflict"):
        client.cancel("job_1")


def test_what_is_asked_of_a_job_is_a_post_to_the_word(script: Script, client: Client) -> None:
    for ask in (client.cancel, client.pause, client.resume, client.stop, client.start):
        script.will_answer({"id": "job_1"})
        ask("job_1")
    words = [f"/jobs/job_1/{word}" for word in ("cancel", "pause", "resume", "stop", "start")]
    assert [(method, path) for method, path, _, _ in script.requests] == [("POST", word) for word in words]


def test_an_address_that_is_not_the_services_is_told(script: Script, client: Client) -> None:
    script.will_answer(b"", status=301, Location="https://other.example/")
    with pytest.raises(ApiProblem, match="HTTP 301"):
        client.job("job_1")
    script.will_answer(b"<h1>It works!</h1>")
    with pytest.raises(ClientError, match="SEFT_URL"):
        client.job("job_1")


def test_a_refusal_by_a_proxy_is_told_too(script: Script, client: Client) -> None:
    script.will_answer(b"<h1>Bad gateway</h1>", status=502)
    with pytest.raises(ApiProblem, match="HTTP 502"):
        client.job("job_1")


def test_a_server_that_stays_away_is_told_with_the_way_out(script: Script, client: Client) -> None:
    script.answers += [None] * 3
    with pytest.raises(ClientError, match="SEFT_URL"):
        client.job("job_1")


def test_pages_are_followed_by_the_last_row(script: Script, client: Client) -> None:
    script.will_answer({"data": [{"id": "job_3"}, {"id": "job_2"}], "has_more": True})
    script.will_answer({"data": [{"id": "job_1"}], "has_more": False})
    assert [job["id"] for job in client.jobs(status="queued")] == ["job_3", "job_2", "job_1"]
    assert [path for _, path, _, _ in script.requests] == ["/jobs?status=queued", "/jobs?status=queued&after=job_2"]


def test_jobs_are_narrowed_by_model_and_metadata(script: Script, client: Client) -> None:
    script.will_answer({"data": [], "has_more": False})
    assert list(client.jobs(model="m", metadata={"team": "a", "run": "x=1"})) == []
    assert script.requests[0][1] == "/jobs?model=m&metadata=team%3Da&metadata=run%3Dx%3D1"


def test_a_clone_carries_its_overrides_and_a_key(script: Script, client: Client) -> None:
    script.will_answer({"code": "unavailable"}, status=503, Retry_After="0")
    script.will_answer({"id": "job_2"}, status=202)
    assert client.clone_job("job_1", {"sparsity": 0.5})["id"] == "job_2"
    assert {path for _, path, _, _ in script.requests} == {"/jobs/job_1/clone"}
    assert {body for _, _, _, body in script.requests} == {b'{"sparsity":0.5}'}
    assert len({headers["Idempotency-Key"] for _, _, headers, _ in script.requests}) == 1


def test_metrics_go_on_behind_a_step(script: Script, client: Client) -> None:
    script.will_answer({"data": [{"step": 5}], "has_more": True})
    script.will_answer({"data": [{"step": 6}], "has_more": False})
    assert [metric["step"] for metric in client.metrics("job_1", after_step=4)] == [5, 6]
    assert [path.partition("?")[2] for _, path, _, _ in script.requests] == ["after_step=4", "after_step=5"]


def test_watching_ends_with_the_final_state(script: Script, client: Client) -> None:
    for status in ("queued", "running", "succeeded"):
        script.will_answer({"status": status})
    assert [job["status"] for job in client.watch("job_1", interval=0)] == ["queued", "running", "succeeded"]


def published(script: Script, name: str, content: bytes) -> None:
    file = {"name": name, "url": f"{script.url}/object?signed", "sha256": hashlib.sha256(content).hexdigest()}
    script.will_answer({"data": [{"files": [{"name": "old"}]}, {"files": [file]}]})


def test_the_newest_checkpoint_is_fetched_without_showing_the_key(
    script: Script, client: Client, tmp_path: Path
) -> None:
    published(script, "deep/model.bin", b"weights")
    script.will_answer(b"weights")
    assert client.download("job_1", tmp_path / "out") == [tmp_path / "out/deep/model.bin"]
    assert (tmp_path / "out/deep/model.bin").read_bytes() == b"weights"
    assert script.requests[0][2]["Authorization"] == "Bearer seft_key"
    assert "Authorization" not in script.requests[1][2]


def test_a_file_with_other_bytes_never_gets_its_name(script: Script, client: Client, tmp_path: Path) -> None:
    published(script, "model.bin", b"weights")
    script.will_answer(b"weightz")
    with pytest.raises(IntegrityError, match=r"model\.bin has the SHA-256"):
        client.download("job_1", tmp_path)
    assert not (tmp_path / "model.bin").exists()


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
def test_no_file_is_written_outside_of_the_folder(script: Script, client: Client, tmp_path: Path, name: str) -> None:
    published(script, name, b"")
    with pytest.raises(IntegrityError, match="outside"):
        client.download("job_1", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_job_without_a_checkpoint_is_told(script: Script, client: Client, tmp_path: Path) -> None:
    script.will_answer({"data": []})
    script.will_answer({"status": "running"})
    with pytest.raises(ClientError, match="no checkpoint; it is running"):
        client.download("job_1", tmp_path)


def test_address_and_key_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEFT_URL", raising=False)
    with pytest.raises(ClientError, match="SEFT_URL is not set"):
        Client()
    monkeypatch.setenv("SEFT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("SEFT_API_KEY", "seft_key")
    with Client() as client:
        assert client.url == "http://127.0.0.1:1"


def test_the_making_of_a_key_is_never_repeated(script: Script, client: Client) -> None:
    script.answers.append(None)
    with pytest.raises(ClientError):
        client.create_key("nightly", "read")
    script.will_answer({"id": "key_1", "secret": "seft_x"}, status=201)
    assert client.create_key("nightly", "read")["secret"] == "seft_x"
    assert [json.loads(body) for _, _, _, body in script.requests] == [{"name": "nightly", "scope": "read"}] * 2


def test_a_key_is_revoked_by_its_id(script: Script, client: Client) -> None:
    script.will_answer({"id": "key_1", "revoked_at": "now"})
    assert client.revoke_key("key_1")["revoked_at"] == "now"
    assert script.requests[0][:2] == ("DELETE", "/keys/key_1")
