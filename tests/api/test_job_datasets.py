"""The second and third dataset of a job: one to retain, one to evaluate on."""

import json
from pathlib import Path

from fastapi import FastAPI
from starlette.testclient import TestClient

from tests.api.conftest import Json, problem


def test_a_retained_dataset_is_checked_protected_and_part_of_the_request(
    client: TestClient, body: Json, dataset: str, other_dataset: str
) -> None:
    def retaining(dataset_id: str | None) -> Json:
        return body | {"repair": {"retain": "dataset", "retain_dataset": dataset_id}}

    for request, value in (
        (retaining(None), "None"),
        (retaining(dataset), dataset),
        (retaining(f"file_{'0' * 26}"), f"file_{'0' * 26}"),
        (body | {"repair": {"retain_dataset": other_dataset}}, other_dataset),
    ):
        report = problem(client.post("/jobs", json=request), 422, "invalid_request")
        assert report["param"] == "repair.retain_dataset"
        (flaw,) = report["errors"]
        assert value in flaw["value"]
        assert flaw["rule"].startswith("must ")
        assert flaw["way_out"].endswith(".")
    headers = {"Idempotency-Key": "k"}
    first, again = (client.post("/jobs", json=retaining(other_dataset), headers=headers).json() for _ in range(2))
    assert first["id"] == again["id"]
    problem(client.post("/jobs", json=body, headers=headers), 422, "idempotency_conflict")
    assert first["id"] in problem(client.delete(f"/datasets/{other_dataset}"), 409, "conflict")["detail"]
    estimated = {"model": "tiny", "sparsity": 0.6, "repair": {"retain": "dataset"}}
    assert client.post("/jobs/estimate", json=estimated).status_code == 200


def test_a_dataset_with_fewer_bytes_than_a_sequence_has_tokens_is_refused(
    client: TestClient, body: Json, other_dataset: str
) -> None:
    def upload(content: bytes) -> str:
        dataset: str = client.post("/datasets", files={"file": ("small.jsonl", content)}).json()["id"]
        return dataset

    text = b'{"text": "a"}\n{"text": "b"}\n'
    pairs = b'{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": "c"}\n'
    small, padded = upload(text), upload(pairs)
    reads_no_text: Json = {"prune": {"method": "magnitude"}}
    prunes: Json = {**reads_no_text, "repair": {"method": "none"}}
    half = len(text) // 2
    for more, fields in (
        ({}, "prune.calibration.tokens or evaluate.tokens"),
        (reads_no_text, "repair.sequence_tokens or evaluate.tokens"),
        (reads_no_text | {"evaluate": {"dataset": other_dataset}}, "repair.sequence_tokens"),
        (prunes, "evaluate.tokens"),
        (_lengths(half, half, half + 2), "repair.sequence_tokens or evaluate.tokens"),
        (_lengths(half + 2, half, half), "prune.calibration.tokens or evaluate.tokens"),
    ):
        report = problem(client.post("/jobs", json=body | {"dataset": small} | more), 422, "invalid_request")
        (flaw,) = report["errors"]
        assert (flaw["param"], flaw["value"]) == ("dataset", f"{len(text)} bytes")
        assert flaw["way_out"] == f"Use a larger dataset, or lower {fields}."
        assert " and one of ".join(fields.split(" or ")) in flaw["rule"]
    for dataset, more in (
        (small, {**prunes, "evaluate": {"tokens": len(text)}}),
        (small, {**prunes, "evaluate": {"dataset": other_dataset}}),
        (small, _lengths(half, half, half)),
        (padded, {}),
    ):
        answer = client.post("/jobs", json=body | {"dataset": dataset} | more)
        assert answer.status_code == 202, answer.text


def _lengths(calibration: int, training: int, evaluation: int) -> Json:
    """Return a part of a request: the tokens of one sequence of each text."""
    return {
        "prune": {"calibration": {"tokens": calibration}},
        "repair": {"sequence_tokens": training},
        "evaluate": {"tokens": evaluation},
    }


def test_conversations_are_refused_for_a_model_without_a_chat_template(
    client: TestClient, body: Json, result: str, app: FastAPI, tmp_path: Path
) -> None:
    """A model has one in a file of its own, and a result of a job has it among its files."""
    chats = "".join(
        json.dumps({"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": "yes"}]}) + "\n"
        for word in ("one", "two")
    )
    chat = client.post("/datasets", files={"file": ("chat.jsonl", chats.encode())}).json()["id"]
    requests = {
        "dataset": body | {"dataset": chat},
        "repair.retain_dataset": body | {"repair": {"retain": "dataset", "retain_dataset": chat}},
        "evaluate.dataset": body | {"evaluate": {"dataset": chat}},
    }
    for model in ("tiny", result):
        for param, request in requests.items():
            report = problem(client.post("/jobs", json=request | {"model": model}), 422, "invalid_request")
            (flaw,) = report["errors"]
            assert (flaw["param"], flaw["value"]) == (param, "messages")
            assert repr(model) in flaw["rule"]
    (tmp_path / "models" / "tiny" / "chat_template.jinja").write_text("{{ messages }}")
    named = json.dumps({"chat_template": [{"name": "default", "template": "{{ messages }}"}]}).encode()
    app.state.services.storage.put(f"jobs/{result}/1/result/tokenizer_config.json", named)
    for model in ("tiny", result):
        for request in requests.values():
            assert client.post("/jobs", json=request | {"model": model}).status_code == 202


def test_a_dataset_to_evaluate_on_is_checked_protected_and_part_of_the_request(
    client: TestClient, body: Json, dataset: str, other_dataset: str
) -> None:
    for evaluate, field, value in (
        ({"dataset": other_dataset, "held_out": 0.1}, "evaluate.held_out", "0.1"),
        ({"dataset": dataset}, "evaluate.dataset", dataset),
        ({"dataset": f"file_{'0' * 26}"}, "evaluate.dataset", f"file_{'0' * 26}"),
        ({"dataset": other_dataset, "tokens": 4096}, "evaluate.dataset", "bytes"),
    ):
        report = problem(client.post("/jobs", json=body | {"evaluate": evaluate}), 422, "invalid_request")
        assert report["param"] == field
        (flaw,) = report["errors"]
        assert value in flaw["value"]
        assert flaw["rule"].startswith("must ")
        assert flaw["way_out"].endswith(".")
    job = client.post("/jobs", json=body | {"evaluate": {"dataset": other_dataset}}).json()
    evaluate = job["spec"]["evaluate"]
    assert (evaluate["dataset"], evaluate["held_out"]) == (other_dataset, None)
    assert job["id"] in problem(client.delete(f"/datasets/{other_dataset}"), 409, "conflict")["detail"]
    clone = client.post(f"/jobs/{job['id']}/clone", json={"evaluate": {"held_out": 0.2}}).json()["spec"]["evaluate"]
    assert (clone["dataset"], clone["held_out"]) == (None, 0.2)
    estimated = {"model": "tiny", "sparsity": 0.6, "evaluate": {"dataset": other_dataset}}
    assert client.post("/jobs/estimate", json=estimated).status_code == 200
