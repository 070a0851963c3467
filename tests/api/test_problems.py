"""Every error is a problem report that names the field, the rule, the value and how to correct it."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from api.errors import TABLE
from api.query import MAX_FLAWS
from core import webhooks
from core.errors import Code
from tests.api.conftest import Json, NewClient, problem, serving
from tests.api.documents import METHODS


def test_every_code_has_a_status_and_a_title() -> None:
    assert set(TABLE) == set(Code)


AS_JSON = {"Content-Type": "application/json"}

GRADUAL: Json = {"prune": {"schedule": "gradual"}, "repair": {"density": 0.005}}
FIELDS: list[tuple[Json, str, str, str, str]] = [
    ({"sparsty": 0.5}, "sparsty", "no such field", "0.5", "Did you mean 'sparsity'? Known fields: model"),
    ({"repair": {"step": 5}}, "repair.step", "no such field", "5", "Did you mean 'steps'?"),
    ({"sparsity": 1.2}, "sparsity", "less than or equal to 0.99", "1.2", "It is at least 0.0 and at most 0.99."),
    ({"sparsity": 60}, "sparsity", "less than or equal to 0.99", "60", "Write 0.6 for 60 %. Fraction of weights"),
    ({"sparsity": "60"}, "sparsity", "should be a number", "'60'", "Example: 0.6."),
    ({"repair": {"density": 5}}, "repair.density", "less than or equal to 1", "5", "Write 0.05 for 5 %."),
    ({"repair": {"learning_rate": 5}}, "repair.learning_rate", "less than or equal to 1", "5", "Peak learning rate."),
    ({"sparsity": None}, "sparsity", "number", "None", "Fraction of weights to set to zero"),
    ({"dataset": "mine"}, "dataset", "match pattern", "'mine'", '`POST /datasets` uploads one. Example: "file_'),
    ({"evaluate": {"dataset": "mine"}}, "evaluate.dataset", "match pattern", "'mine'", 'Example: "file_'),
    ({"prune": "wanda"}, "prune", "should be an object", "'wanda'", 'Example: {"method": "admm"}.'),
    ({"prune": {"calibration": 5}}, "prune.calibration", "an object", "5", 'Example: {"samples": 128}.'),
    ({"auto_start": "no"}, "auto_start", "should be true or false", "'no'", "The default is true."),
    ({"seed": "no"}, "seed", "should be a number without a fraction", "'no'", "The default is 0."),
    (
        {"output": {"formats": "compact"}},
        "output.formats",
        "an array",
        "'compact'",
        'The default is ["dense"]. Example:',
    ),
    (
        {"output": {"formats": ["x"]}},
        "output.formats.0",
        "one of dense, compact",
        "'x'",
        'Example: ["dense", "compact"].',
    ),
    ({"suffix": 5}, "suffix", "should be a string", "5", "Name that the pages show"),
    ({"metadata": "x"}, "metadata", "should be an object", "'x'", 'Example: {"team": "search"}.'),
    ({"priority": 1000}, "priority", "less than or equal to 100", "1000", "The default is 0."),
    ({"pattern": "2/4"}, "pattern", "match pattern", "'2/4'", 'The default is "unstructured".'),
    (
        {"pattern": "2:4"},
        "sparsity",
        "must be 0.5, the sparsity of the pattern 2:4",
        "0.6",
        "Leave out sparsity or the pattern.",
    ),
    ({"pattern": "4:2"}, "pattern", "must be unstructured, or N:M with 0 < N < M", "'4:2'", "for example 2:4"),
    ({"pattern": "1:200"}, "pattern", "at most 0.99 of the weights", "'1:200'", "for example 2:4"),
    ({"allocation": "best"}, "allocation", "'owl'", "'best'", "The default is"),
    (
        {"prune": {"method": "sparsegpt", "compare": "row"}},
        "prune.compare",
        "must be auto for sparsegpt",
        "'row'",
        "Leave compare out",
    ),
    ({"repair": {"learning_rate": "x"}}, "repair.learning_rate", "number", "'x'", 'The default is "auto".'),
    (
        {"repair": {"batch_tokens": 1000}},
        "repair.batch_tokens",
        "multiple of sequence_tokens",
        "1000",
        "Try 1024. Or send null",
    ),
    (GRADUAL, "repair.density", "must be all with the schedule gradual", "0.005", "Use the method seft with density"),
    (GRADUAL | {"repair": {"method": "none"}}, "repair.method", "must be seft", "'none'", "or the schedule one_shot."),
    ({"repair": {"swap_tokens": 5, "density": 0.1}}, "repair.swap_tokens", "must be 0", "5", "or use density all"),
    ({"prune": {"method": "ria", "compare": "model"}}, "prune.compare", "must not be model", "'model'", "Use row"),
    ({"prune": {"method": "magic"}}, "prune.method", "'wanda'", "'magic'", 'The default is "admm".'),
    ({"prune": {"method": "wandaa"}}, "prune.method", "'wanda'", "'wandaa'", "Did you mean 'wanda'? Method of pruning"),
    ({"repair": {"density": "al"}}, "repair.density", "or input should be 'auto' or 'all'", "'al'", "mean 'all'?"),
    ({"prune": {"tokens": 5}}, "prune.tokens", "no such field", "5", "Did you mean 'prune.calibration.tokens'? Known"),
    ({"steps": 5}, "steps", "no such field", "5", "Did you mean 'repair.steps'? Known fields: model"),
    ({"method": "x"}, "method", "no such field", "'x'", "Did you mean 'prune.method' or 'repair.method'?"),
    ({"evaluate": {"tasks": ["x"]}}, "evaluate.tasks", "no such field", "['x']", "Known fields: dataset"),
    ({"metadata": {"team": 5}}, "metadata.team", "a string", "5", "Up to 16"),
    ({"metadata": {"team": "\0"}}, "metadata.team", "NUL", "'\\x00'", "Up to 16"),
    ({"model": "a\ud800"}, "model", "unicode", "'a\\ud800'", "Id of a hub model"),
    ({"model": "x" * 10_000}, "model", "at most 512", "xxx…", "Id of a hub model"),
    ({"suffix": "x" * 65}, "suffix", "at most 64 characters, not 65", "xxx", "Name that the pages show"),
    ({"metadata": {"team": "x" * 513}}, "metadata.team", "at most 512 characters", "xxx…", "Up to 16"),
    ({"metadata": {str(key): "" for key in range(17)}}, "metadata", "at most 16 items", "'0'", "Up to 16"),
    ({"seed": 10**4000}, "seed", "less than", "1000", "The default is 0."),
    ({"sparsity": float("nan")}, "sparsity", "less than or equal to", "nan", "Fraction of weights to set to zero"),
]


def test_a_wrong_field_is_named_with_rule_value_and_way_out(client: TestClient, body: Json) -> None:
    for wrong, param, rule, value, way_out in FIELDS:
        answer = client.post("/jobs", content=json.dumps(body | wrong), headers=AS_JSON)
        (flaw,) = problem(answer, 422, "invalid_request")["errors"]
        assert flaw["param"] == param
        assert rule in flaw["rule"]
        assert value in flaw["value"]
        assert way_out in flaw["way_out"]
        assert len(flaw["value"]) <= 80
    assert client.get("/jobs").json()["data"] == []


def test_all_wrong_fields_are_named_at_once(client: TestClient) -> None:
    report = problem(client.post("/jobs", json={"sparsity": 2, "x": 1}), 422, "invalid_request")
    assert {flaw["param"] for flaw in report["errors"]} == {"model", "dataset", "sparsity", "x"}
    missing = next(flaw for flaw in report["errors"] if flaw["param"] == "model")
    assert (missing["rule"], missing["value"]) == ("Field required", "nothing")
    assert missing["way_out"].endswith('Example: "HuggingFaceTB/SmolLM2-135M-Instruct".')


@pytest.mark.parametrize("pattern", ["2/4", "4:2", "2:2", "1:200"])
def test_an_impossible_pattern_is_no_error_of_the_sparsity_that_it_implies(
    client: TestClient, body: Json, pattern: str
) -> None:
    del body["sparsity"]
    report = problem(client.post("/jobs", json=body | {"pattern": pattern}), 422, "invalid_request")
    assert [flaw["param"] for flaw in report["errors"]] == ["pattern"]


def test_a_body_of_another_type_gets_an_example_of_a_body(client: TestClient) -> None:
    (flaw,) = problem(client.post("/jobs", json=["tiny"]), 422, "invalid_request")["errors"]
    assert (flaw["param"], flaw["rule"]) == ("body", "Input should be an object")
    assert flaw["way_out"].startswith('Send a JSON object such as {"dataset": "')
    assert ". Known fields: model, revision," in flaw["way_out"]


def test_a_wrong_webhook_gets_an_example_and_the_known_events(client: TestClient) -> None:
    wrong = {"url": "ftp://example.com", "events": ["job.done", "job.suceeded"]}
    url, unknown, misspelt = problem(client.post("/webhooks", json=wrong), 422, "invalid_request")["errors"]
    assert url["way_out"].endswith('Example: "https://example.com/seft".')
    assert (unknown["param"], misspelt["param"]) == ("events.0", "events.1")
    assert unknown["rule"].startswith("Input should be 'job.created', 'job.claimed',")
    assert misspelt["way_out"].startswith("Did you mean 'job.succeeded'? ")


def test_the_number_of_webhooks_is_limited(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "MAX_WEBHOOKS", 1)
    body = {"url": "https://example.com"}
    assert client.post("/webhooks", json=body).status_code == 201
    problem(client.post("/webhooks", json=body), 409, "limit_reached")


def test_a_value_that_may_be_a_secret_is_not_repeated(client: TestClient, body: Json) -> None:
    answer = client.post("/jobs", json=body | {"hf_token": "hf_123", "api_key": "seft_123"})
    problem(answer, 422, "invalid_request")
    assert "123" not in answer.text


UNREADABLE: list[str | bytes] = [
    b"\xff\xfe{",
    "{",
    "",
    "[1]",
    "nul",
    '"text"',
    "[" * 100_000,
    '{"seed": ' + "1" * 5000 + "}",
    "NaN",
    "\ufeff{}",
]


def test_a_body_that_is_no_json_object_is_refused(client: TestClient) -> None:
    for content in UNREADABLE:
        report = problem(client.post("/jobs", content=content, headers=AS_JSON), 422, "invalid_request")
        assert report["param"] in {"body", "model"}


REFUSED: list[tuple[Callable[[TestClient], Any], int, str]] = [
    (lambda c: c.get("/nothing"), 404, "not_found"),
    (lambda c: c.delete("/jobs"), 405, "method_not_allowed"),
    (lambda c: c.post("/jobs", data={"model": "x"}), 415, "unsupported_media_type"),
    (lambda c: c.post("/datasets", json={}), 415, "unsupported_media_type"),
    (lambda c: c.post("/jobs", json={}, headers={"Idempotency-Key": "k" * 256}), 422, "invalid_request"),
    (lambda c: c.get("/jobs?after=%00"), 422, "invalid_request"),
    (lambda c: c.get("/jobs?model=%00"), 422, "invalid_request"),
    (lambda c: c.get("/jobs?status=lost"), 422, "invalid_request"),
    (lambda c: c.get("/models?after=%00"), 422, "invalid_request"),
    (lambda c: c.get("/models/a%00b"), 422, "invalid_request"),
    (lambda c: c.get(f"/models/tiny?revision={'x' * 256}"), 422, "invalid_request"),
]


def test_every_error_is_a_problem_report(client: TestClient) -> None:
    for send, status, code in REFUSED:
        problem(send(client), status, code)
    unknown = client.get("/jobs?status=queud").json()["errors"]
    assert unknown[0]["way_out"].startswith("Did you mean 'queued'? ")
    assert client.delete("/jobs").headers["allow"] == "GET, HEAD, POST"
    assert client.delete("/jobs/x/cancel").headers["allow"] == "POST"
    assert client.delete("/docs").headers["allow"] == "GET, HEAD"


def test_head_has_the_headers_of_get_and_no_content(app: FastAPI, client: TestClient) -> None:
    with serving(app, client) as server:
        for path in ("/livez", "/jobs", "/jobs/job_none", "/docs", "/dashboard/sign-in"):
            whole, head = server.get(path), server.head(path)
            assert (head.status_code, head.content) == (whole.status_code, b""), path
            for name in ("content-type", "content-length"):
                assert head.headers[name] == whole.headers[name], path


def test_head_opens_no_event_stream(app: FastAPI, client: TestClient, job_id: str) -> None:
    path, stream = f"/jobs/{job_id}/events", {"Accept": "text/event-stream"}
    with serving(app, client) as server:
        head = server.head(path, headers=stream)
        assert (head.status_code, head.headers["content-type"]) == (200, "application/json")
        began = time.monotonic()
        assert server.get(path).json()["data"]
        assert time.monotonic() < began + 10


def test_every_operation_refuses_unknown_query_parameters(app: FastAPI, client: TestClient) -> None:
    for path, methods in app.openapi()["paths"].items():
        for method in filter(METHODS.__contains__, methods):
            described = methods[method].get("parameters", [])
            known = [each["name"] for each in described if each["in"] == "query"]
            url = path.replace("{", "").replace("}", "")
            answer = client.request(method, f"{url}?unknown=1&api_key=seft_123&unknown=2", headers=AS_JSON)
            report = problem(answer, 422, "invalid_request")
            assert [(flaw["param"], flaw["value"]) for flaw in report["errors"]] == [
                ("unknown", "'2'"),
                ("api_key", "(not shown)"),
            ]
            names = f"Known parameters: {', '.join(known)}." if known else "This operation has no query parameters."
            assert all(flaw["way_out"].endswith(names) for flaw in report["errors"]), (method, path)
            assert names in report["detail"]
    assert "Did you mean 'limit'?" in client.get("/jobs?limt=5").json()["detail"]
    assert len(client.get("/jobs?" + "&".join(f"a{n}=" for n in range(99))).json()["errors"]) == MAX_FLAWS
    assert client.get("/docs?a=1").status_code == 200


def test_a_repeated_query_parameter_is_refused(client: TestClient) -> None:
    report = problem(client.get("/jobs?limit=5&limit=6"), 422, "invalid_request")
    assert [(flaw["param"], flaw["value"]) for flaw in report["errors"]] == [("limit", "'6'")]
    assert report["errors"][0]["rule"] == "must be given once; it is given 2 times"


def test_an_unexpected_error_shows_no_internals(
    app: FastAPI, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError("postgresql://user:secret@host")

    answer = client.get("/broken")
    problem(answer, 500, "internal_error")
    assert "secret" not in answer.text


def test_every_answer_has_its_own_request_id(client: TestClient) -> None:
    answers = [client.get("/livez"), client.get("/jobs"), client.get("/nothing"), client.get("/jobs/x")]
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["model", "dataset", "sparsity", "repair", "prune", "evaluate", "metadata", "seed", "suffix"])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(wrong=JSON | st.dictionaries(NAMES, JSON, max_size=4))
def test_no_json_breaks_the_server(wrong: object, client: TestClient, body: Json) -> None:
    content = json.dumps({**body, **wrong} if isinstance(wrong, dict) else wrong)
    answer = client.post("/jobs", content=content, headers=AS_JSON)
    assert answer.status_code in {202, 422}, answer.text
    if answer.status_code == 422:
        problem(answer, 422, answer.json()["code"])


def test_reports_of_strangers_do_not_differ_from_those_of_nothing(new_client: NewClient, job_id: str) -> None:
    stranger, nothing = new_client("theirs"), f"job_{'0' * 26}"
    details = [stranger.get(f"/jobs/{unknown}").json()["detail"].replace(unknown, "") for unknown in (job_id, nothing)]
    assert details[0] == details[1]
