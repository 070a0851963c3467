"""Deletion of jobs over HTTP."""

from starlette.testclient import TestClient

from tests.api.conftest import Json, problem


def test_an_ended_job_is_deleted_and_its_idempotency_key_is_free_again(client: TestClient, body: Json) -> None:
    header = {"Idempotency-Key": "k"}
    job = client.post("/jobs", json=body, headers=header).json()
    path = f"/jobs/{job['id']}"
    report = problem(client.delete(path), 409, "conflict")
    assert f"it is queued. Only a job that has ended can be deleted. POST {path}/cancel" in report["detail"]
    ended = client.post(f"{path}/cancel").json()
    assert client.delete(path).json() == ended
    for address in (path, f"{path}/events", f"{path}/metrics", f"{path}/checkpoints"):
        problem(client.get(address), 404, "not_found")
    problem(client.delete(path), 404, "not_found")
    assert client.get("/jobs").json()["data"] == []
    actions = [entry["action"] for entry in client.get("/audit").json()["data"] if entry["target"] == job["id"]]
    assert actions == ["delete_job", "cancel_job", "create_job"]
    assert client.post("/jobs", json={**body, "seed": 1}, headers=header).json()["id"] != job["id"]
    assert client.delete(f"/datasets/{body['dataset']}").status_code == 409
