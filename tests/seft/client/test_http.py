"""Both clients, with a small HTTP server that each test scripts."""

import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, assert_type, cast

import pytest

from seft.client import AsyncClient, Client
from seft.client.errors import ApiProblem, ClientError, Unreachable
from seft.client.events import EventReader
from seft.client.operations import Operations
from seft.client.responses import Dataset, Job
from seft.client.steps import Request, flow, operation
from tests.seft.client.servers import Script

SPEC = {"model": "m", "dataset": "file_x", "sparsity": 0.6}


def test_a_call_is_retried_if_the_connection_breaks_or_the_server_is_busy(script: Script, client: Client) -> None:
    script.answers.append(None)
    script.will_answer({"code": "unavailable"}, status=503, Retry_After="0")
    script.will_answer({"id": "job_1"}, status=202)
    assert client.create_job(SPEC)["id"] == "job_1"
    keys = {headers["Idempotency-Key"] for _, _, headers, _ in script.requests}
    assert len(script.requests) == 3
    assert len(keys) == 1


def test_two_calls_create_two_jobs_unless_they_share_a_key(script: Script, client: Client) -> None:
    for _ in range(4):
        script.will_answer({"id": "job_1"})
    client.create_job(SPEC)
    client.create_job(SPEC)
    client.create_job(SPEC, idempotency_key="mine")
    client.create_job(SPEC, idempotency_key="mine")
    keys = [headers["Idempotency-Key"] for _, _, headers, _ in script.requests]
    assert keys[0] != keys[1]
    assert keys[2:] == ["mine", "mine"]


def test_a_retried_upload_sends_the_whole_file_again(script: Script, client: Client, tmp_path: Path) -> None:
    (data := tmp_path / "data.jsonl").write_text('{"text": "all of it"}\n')
    script.will_answer({}, status=503)
    script.will_answer({"id": "file_1"})
    client.upload_dataset(str(data))  # a path may also be text
    assert all(b"all of it" in body for _, _, _, body in script.requests)


def test_a_slow_check_of_a_file_is_awaited_and_does_not_send_the_file_again(
    script: Script, client: Client, tmp_path: Path
) -> None:
    (data := tmp_path / "data.jsonl").write_text("{}")
    getattr(client, "client", client)._service.timeout = 0.2
    script.delay = 0.6
    script.will_answer({"id": "file_1"})
    assert client.upload_dataset(data)["id"] == "file_1"
    assert len(script.requests) == 1
    script.answers += [(200, {}, b"{}")] * 3
    with pytest.raises(Unreachable):
        client.job("job_1")


def test_what_cannot_be_sent_is_rejected_with_its_rule(script: Script, client: Client, tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    named = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl"))
    named.write_text("{}")
    for path, rule in ((pipe, "must be a regular file"), (tmp_path, "must be a regular file"), (named, "valid UTF-8")):
        with pytest.raises(ClientError, match=rule):
            client.upload_dataset(path)
    with pytest.raises(ClientError, match="idempotency key must not be empty"):
        client.create_job(SPEC, idempotency_key="")
    with pytest.raises(ClientError, match="idempotency key must not be empty"):
        client.clone_job("job_1", idempotency_key="")
    assert script.requests == []


def test_a_rejection_names_each_flaw(script: Script, client: Client) -> None:
    flaw = {"param": "sparsity", "rule": "at most 0.99", "value": "1.2", "way_out": "0.6 is usual."}
    body = {"code": "invalid_request", "detail": "It is wrong.", "request_id": "req_1", "errors": [flaw]}
    script.will_answer(body, status=422)
    with pytest.raises(ApiProblem) as caught:
        client.create_job(SPEC)
    problem = caught.value
    assert (problem.status, problem.code, problem.request_id) == (422, "invalid_request", "req_1")
    assert str(problem) == "invalid_request: It is wrong.\n  sparsity: at most 0.99; it is 1.2. 0.6 is usual."
    assert len(script.requests) == 1


@pytest.mark.parametrize("errors", [None, "x", {"a": "b"}, ["x", None], 7])
def test_a_rejection_by_another_server_may_have_other_errors(script: Script, client: Client, errors: object) -> None:
    script.will_answer({"errors": errors}, status=404)
    with pytest.raises(ApiProblem, match=r"unknown: HTTP 404 .* not an answer of the service") as caught:
        client.job("job_1")
    assert caught.value.flaws == ()


def test_a_request_that_http_cannot_carry_is_reported(script: Script, client: Client) -> None:
    calls: tuple[Callable[[], object], ...] = (
        lambda: client.job("\x01"),
        *(lambda key=key: client.create_job(SPEC, idempotency_key=key) for key in ("ü", "run 1 ", "a\nb")),
    )
    for call in calls:
        with pytest.raises(ClientError, match="The request cannot be sent") as caught:
            call()
        assert not isinstance(caught.value, Unreachable)
    assert script.requests == []


CALLS = [
    getattr(Client, name)
    for name in dir(Client)
    if isinstance(getattr(Client, name), operation | flow)
    and any(each.endswith("_id") for each in inspect.signature(getattr(Client, name).steps).parameters)
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.steps.__name__)
@pytest.mark.parametrize("wrong", ["", ".", "..", "../keys", "a/../../keys", "a\n", "\udcff"])
def test_an_id_selects_no_other_path_of_the_service(call: Any, wrong: str) -> None:
    def first(name: str) -> Request:
        required = [each for each in inspect.signature(call.steps).parameters.values() if each.default is each.empty]
        values = [name if each.name.endswith("_id") else "text" for each in required[1:]]
        (caller := Operations()).pauses = ()
        return cast("Request", next(call.steps(caller, *values)).request)

    usual, strange = first("a-b"), first("a?b#c%2f d")
    assert strange.path == usual.path.replace("a-b", "a%3Fb%23c%252f%20d") != usual.path
    with pytest.raises(ClientError, match="The request cannot be sent: an id must not be empty"):
        first(wrong)


def test_a_call_is_retried_while_an_equal_call_is_in_flight(script: Script, client: Client) -> None:
    script.will_answer({"code": "idempotency_in_flight"}, status=409, Retry_After="0")
    script.will_answer({"id": "job_1"}, status=202)
    assert client.create_job(SPEC)["id"] == "job_1"
    script.will_answer({"code": "conflict"}, status=409)
    with pytest.raises(ApiProblem, match="conflict"):
        client.cancel("job_1")


def test_each_action_on_a_job_is_a_post_to_its_path(script: Script, client: Client) -> None:
    for act in (client.cancel, client.pause, client.resume, client.stop, client.start):
        script.will_answer({"id": "job_1"})
        act("job_1")
    paths = [f"/jobs/job_1/{action}" for action in ("cancel", "pause", "resume", "stop", "start")]
    assert [(method, path) for method, path, _, _ in script.requests] == [("POST", path) for path in paths]


def test_a_push_names_the_repository_and_its_branch(script: Script, client: Client) -> None:
    script.will_answer({"id": "push_1"}, status=202)
    script.will_answer({"data": [{"id": "push_1"}]})
    assert client.push("job_1", "acme/sparse", private=False)["id"] == client.pushes("job_1")[0]["id"]
    (method, path, _, content), (_, listed, _, _) = script.requests
    assert (method, path, listed) == ("POST", "/jobs/job_1/push", "/jobs/job_1/pushes")
    assert json.loads(content) == {"repository": "acme/sparse", "private": False, "revision": "main"}


def test_an_address_of_another_server_is_reported(script: Script, client: Client) -> None:
    script.will_answer(b"", status=301, Location="https://other.example/")
    with pytest.raises(ApiProblem, match="HTTP 301"):
        client.job("job_1")
    script.will_answer(b"<h1>It works!</h1>")
    with pytest.raises(ClientError, match="Check that SEFT_URL is the address of the service"):
        client.job("job_1")


def test_a_rejection_by_a_proxy_is_reported(script: Script, client: Client) -> None:
    for _ in range(3):
        script.will_answer(b"<h1>Bad gateway</h1>", status=502)
    with pytest.raises(ApiProblem, match="HTTP 502"):
        client.job("job_1")


def test_an_unreachable_server_is_reported_with_the_way_out(script: Script, client: Client) -> None:
    script.answers += [None] * 3
    with pytest.raises(ClientError, match=f"^{script.url} does not answer: .* Check the address"):
        client.job("job_1")


def test_pages_are_followed_by_the_last_row(script: Script, client: Client) -> None:
    script.will_answer({"data": [{"id": "job_3"}, {"id": "job_2"}], "has_more": True})
    script.will_answer({"data": [{"id": "job_1"}], "has_more": False})
    assert [job["id"] for job in client.jobs(status="queued")] == ["job_3", "job_2", "job_1"]
    assert [path for _, path, _, _ in script.requests] == ["/jobs?status=queued", "/jobs?status=queued&after=job_2"]


def test_jobs_are_filtered_by_model_and_metadata(script: Script, client: Client) -> None:
    script.will_answer({"data": [], "has_more": False})
    assert list(client.jobs(model="m", metadata={"team": "a", "run": "x=1"})) == []
    assert script.requests[0][1] == "/jobs?model=m&metadata=team%3Da&metadata=run%3Dx%3D1"


def test_a_clone_sends_its_overrides_and_an_idempotency_key(script: Script, client: Client) -> None:
    script.will_answer({"code": "unavailable"}, status=503, Retry_After="0")
    script.will_answer({"id": "job_2"}, status=202)
    assert client.clone_job("job_1", {"sparsity": 0.5})["id"] == "job_2"
    assert {path for _, path, _, _ in script.requests} == {"/jobs/job_1/clone"}
    assert {body for _, _, _, body in script.requests} == {b'{"sparsity":0.5}'}
    assert len({headers["Idempotency-Key"] for _, _, headers, _ in script.requests}) == 1


def test_metrics_continue_after_a_step(script: Script, client: Client) -> None:
    script.will_answer({"data": [{"step": 5}], "has_more": True})
    script.will_answer({"data": [{"step": 6}], "has_more": False})
    assert [metric["step"] for metric in client.metrics("job_1", after_step=4)] == [5, 6]
    assert [path.partition("?")[2] for _, path, _, _ in script.requests] == ["after_step=4", "after_step=5"]


def test_watching_waits_for_changes_and_ends_with_the_final_state(script: Script, client: Client) -> None:
    script.will_answer({"status": "queued"}, ETag='"a"')
    script.will_answer({"status": "running"}, ETag='"b"')
    script.will_answer(b"", status=304, ETag='"b"')
    script.will_answer({"status": "succeeded"}, ETag='"c"')
    assert [job["status"] for job in client.watch("job_1")] == ["queued", "running", "succeeded"]
    assert [path for _, path, _, _ in script.requests] == ["/jobs/job_1", *["/jobs/job_1?wait=30"] * 3]
    assert [headers.get("If-None-Match") for _, _, headers, _ in script.requests] == [None, '"a"', '"b"', '"b"']


def stream(*events: int) -> bytes:
    return b": hello\n\n" + b"".join(b'id: %d\nevent: job.x\ndata: {"id": %d}\n\n' % (n, n) for n in events)


def test_a_stream_of_events_resumes_where_it_broke_until_the_service_ends_it(script: Script, client: Client) -> None:
    script.will_answer(stream(3, 5), Content_Type="text/event-stream; charset=utf-8")
    script.will_answer({}, status=503, Retry_After="0")
    script.will_answer(stream(8) + b'data: {"id": 9, "cut', Content_Type="text/event-stream")
    script.will_answer(b"", status=204)
    assert [event["id"] for event in client.live_events("job_1", after=2)] == [3, 5, 8]
    assert [headers["Last-Event-ID"] for _, _, headers, _ in script.requests] == ["2", "5", "5", "8"]
    assert {headers["Accept"] for _, _, headers, _ in script.requests} == {"text/event-stream"}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_events_are_complete_for_every_size_of_the_chunks(end: str) -> None:
    text = f"id: 1{end}data: a{end}data:b{end}{end}: still here{end}{end}data: ä{end}{end}".encode()
    for size in (1, 2, 3, 1000):
        reader = EventReader()
        chunks = [text[start : start + size] for start in range(0, len(text), size)]
        assert [data for chunk in chunks for data in reader.feed(chunk)] == ["a\nb", "ä"]


def test_retry_after_may_be_a_date(script: Script, client: Client) -> None:
    script.will_answer({}, status=429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")
    script.will_answer({"id": "job_1"})
    assert client.job("job_1")["id"] == "job_1"


def test_a_retry_after_that_is_too_long_fails_at_once(script: Script, client: Client) -> None:
    script.will_answer({"code": "rate_limited", "detail": "Too many."}, status=429, Retry_After="3600")
    with pytest.raises(ApiProblem, match="rate_limited: Too many"):
        client.job("job_1")


def test_a_proxy_error_while_the_service_starts_is_retried(script: Script, client: Client) -> None:
    script.will_answer(b"<h1>Bad gateway</h1>", status=502)
    script.will_answer({"id": "job_1"})
    assert client.job("job_1")["id"] == "job_1"
    script.will_answer({"code": "hub_unreachable"}, status=502, Content_Type="application/problem+json")
    with pytest.raises(ApiProblem, match="hub_unreachable"):
        client.create_job(SPEC)


def test_an_upload_reports_its_progress(script: Script, client: Client, tmp_path: Path) -> None:
    (data := tmp_path / "data.jsonl").write_bytes(b"x" * 200_000)
    script.will_answer({"id": "file_1"})
    progress: list[tuple[int, int]] = []
    client.upload_dataset(data, progress=lambda done, total: progress.append((done, total)))
    assert progress == sorted(progress)
    assert len(progress) > 2
    assert progress[-1] == (200_000, 200_000)


def test_a_file_that_is_too_large_for_one_request_is_sent_in_parts(
    script: Script, client: Client, tmp_path: Path
) -> None:
    (data := tmp_path / "data.jsonl").write_bytes(b"x" * 9)
    script.will_answer({"code": "too_large", "detail": "It is too large."}, status=413)
    script.will_answer({"id": "imp_1", "parts": 1, "part_bytes": 16}, status=201)
    script.will_answer({"data": [{"number": 1, "bytes": 9, "received": True, "url": None}], "has_more": False})
    script.will_answer({"id": "imp_1"}, status=202)
    script.will_answer({"error": None, "dataset_id": "file_1"})
    script.will_answer({"id": "file_1"})
    assert client.upload_dataset(data)["id"] == "file_1"
    assert [path.partition("?")[0] for _, path, _, _ in script.requests] == [
        "/datasets",
        "/imports",
        "/imports/imp_1/parts",
        "/imports/imp_1/complete",
        "/imports/imp_1",
        "/datasets/file_1",
    ]
    script.will_answer({"code": "invalid_dataset", "detail": "It has no record."}, status=422)
    with pytest.raises(ApiProblem, match="invalid_dataset"):
        client.upload_dataset(data)


async def types(blocking: Client, asynchronous: AsyncClient) -> None:
    """Only checked by mypy, never run. Both clients have the right types, although they share one definition."""
    assert_type(blocking.job("job_1"), Job)
    assert_type(await asynchronous.job("job_1"), Job)
    assert_type(next(blocking.watch("job_1")), Job)
    assert_type(await anext(aiter(asynchronous.watch("job_1"))), Job)
    assert_type(await asynchronous.upload_dataset(Path()), Dataset)
    blocking.job()  # type: ignore[call-arg]
    assert_type(await asynchronous.download("job_1", "folder"), list[Path])
    asynchronous.download("job_1", 1)  # type: ignore[arg-type]


def test_a_job_without_a_checkpoint_is_reported(script: Script, client: Client, tmp_path: Path) -> None:
    script.will_answer({"data": []})
    script.will_answer({"status": "running"})
    with pytest.raises(ClientError, match="no checkpoint; it is running"):
        client.download("job_1", tmp_path)


def test_creating_a_key_is_never_retried(script: Script, client: Client) -> None:
    script.answers.append(None)
    with pytest.raises(ClientError):
        client.create_key("nightly", "read")
    script.will_answer({"id": "key_1", "secret": "seft_x"}, status=201)
    assert client.create_key("nightly", "read")["secret"] == "seft_x"
    assert [json.loads(body) for _, _, _, body in script.requests] == [{"name": "nightly", "scope": "read"}] * 2


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.create_webhook("https://example.com"),
        lambda client: client.rotate_webhook_secret("hook_1"),
        lambda client: client.test_webhook("hook_1"),
        lambda client: client.import_dataset("s3://inbox/texts.jsonl"),
        lambda client: client.start_import("s3://inbox/texts.jsonl"),
    ],
)
def test_a_call_that_must_not_arrive_twice_is_never_retried(
    script: Script, client: Client, call: Callable[[Client], object]
) -> None:
    script.answers.append(None)
    with pytest.raises(ClientError):
        call(client)
    assert len(script.requests) == 1


def test_models_estimates_and_previews_are_requested(script: Script, client: Client) -> None:
    script.will_answer({"id": "owner/a name", "fits_on": ["w1"]})
    script.will_answer({"data": [{"id": "a"}], "has_more": True})
    script.will_answer({"data": [{"id": "b"}], "has_more": False})
    script.will_answer({"fits": True})
    script.will_answer({"tokens": 4})
    assert client.model("owner/a name", revision="main")["fits_on"] == ["w1"]
    assert [model["id"] for model in client.models()] == ["a", "b"]
    assert client.estimate_job({"model": "a", "sparsity": 0.6})["fits"]
    assert client.preview_dataset("file_1", "owner/name", limit=2)["tokens"] == 4
    assert [(method, path) for method, path, _, _ in script.requests] == [
        ("GET", "/models/owner/a%20name?revision=main"),
        ("GET", "/models"),
        ("GET", "/models?after=a"),
        ("POST", "/jobs/estimate"),
        ("GET", "/datasets/file_1/preview?model=owner%2Fname&limit=2"),
    ]
    assert script.requests[3][3] == b'{"model":"a","sparsity":0.6}'


@pytest.mark.parametrize(
    "delete",
    [
        lambda client: client.delete_job("x_1"),
        lambda client: client.delete_dataset("x_1"),
        lambda client: client.delete_webhook("x_1"),
        lambda client: client.delete_hub_token(),
    ],
)
def test_a_deletion_whose_reply_is_lost_succeeds(
    script: Script, client: Client, delete: Callable[[Client], object]
) -> None:
    not_found = {"code": "not_found", "detail": "There is none."}
    script.will_answer({"id": "x_1"})
    script.answers.append(None)
    script.will_answer(not_found, status=404)
    assert delete(client) == {"id": "x_1"}
    assert [method for method, *_ in script.requests] == ["GET", "DELETE", "DELETE"]
    script.will_answer(not_found, status=404)
    with pytest.raises(ApiProblem, match="not_found"):
        delete(client)


def test_a_key_is_revoked_by_its_id(script: Script, client: Client) -> None:
    script.will_answer({"id": "key_1", "revoked_at": "now"})
    assert client.revoke_key("key_1")["revoked_at"] == "now"
    assert script.requests[0][:2] == ("DELETE", "/keys/key_1")
