"""Estimates of a job before it runs."""

from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from core import workers
from core.capability import CPU, Capability
from tests.api.conftest import Json, problem
from tests.core.conftest import FLOPS
from tests.hollow import BLOCKS, LINEARS, SHAPES

MEMORY = 4 << 30


@pytest.fixture
def worker(sessions: sessionmaker[Session]) -> str:
    with sessions.begin() as session:
        workers.record_heartbeat(session, "w1", Capability(CPU, "x86_64", MEMORY, 1 << 40))
    return "w1"


def estimated(client: TestClient, **spec: Any) -> Json:
    answer = client.post("/jobs/estimate", json={"model": "tiny", "sparsity": 0.6, **spec})
    assert answer.status_code == 200, answer.text
    estimate: Json = answer.json()
    return estimate


def test_an_estimate_counts_the_model_and_asks_every_worker_that_lives(
    client: TestClient, sessions: sessionmaker[Session], worker: str
) -> None:
    estimate = estimated(client, repair={"steps": 7})
    sizes = {name: shape[0] * (shape[1] if len(shape) > 1 else 1) for name, shape in SHAPES.items()}
    assert estimate["parameters"] == sum(sizes.values())
    assert estimate["target_weights"] == BLOCKS * sum(rows * cols for rows, cols in LINEARS.values())
    assert (estimate["steps"], estimate["tokens"]["training"]) == (7, 7 * 1024)
    assert [stage["phase"] for stage in estimate["memory"]] == [
        "loading",
        "evaluating",
        "writing",
        "pruning",
        "training",
        "exporting",
    ]
    assert estimate["checkpoint_bytes"] == 2 * estimate["parameters"]
    assert estimate["fits"] is True
    (fit,) = estimate["workers"]
    assert (fit["name"], fit["fits"], fit["change"], fit["seconds"]) == (worker, True, {}, None)
    with sessions.begin() as session:
        session.execute(text("UPDATE workers SET seen_at = now() - interval '1 h'"))
    assert (estimated(client)["fits"], estimated(client)["workers"]) == (None, [])


def test_a_calibrated_worker_gives_a_time_before_any_job_has_run(
    client: TestClient, sessions: sessionmaker[Session], worker: str
) -> None:
    def seconds_of(**spec: Any) -> tuple[Any, Any]:
        (fit,) = estimated(client, **spec)["workers"]
        return fit["seconds"], fit["seconds_from"]

    assert seconds_of() == (None, None)
    with sessions.begin() as session:
        workers.record_flops(session, worker, FLOPS)
    short, source = seconds_of(repair={"steps": 100})
    assert (short > 0, source) == (True, "calibration")
    assert seconds_of(repair={"steps": 10_000})[0] > short
    with sessions.begin() as session:
        workers.record_flops(session, worker, {dtype: speed / 10 for dtype, speed in FLOPS.items()})
    assert seconds_of(repair={"steps": 100})[0] > short


def test_the_estimate_of_a_job_that_fits_nowhere_suggests_a_change(
    client: TestClient, sessions: sessionmaker[Session], worker: str
) -> None:
    huge = {"micro_batch": 256, "sequence_tokens": 16384, "batch_tokens": 256 * 16384}
    estimate = estimated(client, repair=huge)
    (fit,) = estimate["workers"]
    assert (estimate["fits"], fit["phase"], fit["memory_bytes"]) == (False, "training", MEMORY)
    assert fit["needed_bytes"] > MEMORY
    assert fit["change"]["repair"]["micro_batch"] < 256
    assert fit["change"]["dtype"] == "bfloat16"
    assert estimated(client, dtype="bfloat16", repair={**huge, **fit["change"]["repair"]})["fits"] is True


def test_auto_is_the_data_type_of_each_worker(client: TestClient, sessions: sessionmaker[Session], worker: str) -> None:
    newer = Capability(CPU, "newer", MEMORY, 1 << 40, bfloat16=True)
    with sessions.begin() as session:
        workers.record_heartbeat(session, "w2", newer)
        for name in (worker, "w2"):
            workers.record_flops(session, name, FLOPS)
    auto, single, half = (estimated(client, dtype=dtype) for dtype in ("auto", "float32", "bfloat16"))
    assert estimated(client) == auto
    assert [fit["dtype"] for fit in auto["workers"]] == ["float32", "bfloat16"]
    assert auto["workers"] == [single["workers"][0], half["workers"][1]]
    assert auto["workers"][1]["needed_bytes"] < auto["workers"][0]["needed_bytes"]
    assert auto["memory"] == single["memory"]


def test_a_gradual_job_that_fits_no_live_worker_is_refused_with_a_way_out(
    client: TestClient, sessions: sessionmaker[Session], body: Json, worker: str
) -> None:
    file = {"file": ("long.jsonl", b'{"text": "%s"}\n{"text": "b"}\n' % (b"a" * 20000))}
    body = {**body, "dataset": client.post("/datasets", files=file).json()["id"]}
    repair = {"density": "all", "micro_batch": 256, "sequence_tokens": 16384, "batch_tokens": 256 * 16384}
    gradual = {**body, "prune": {"schedule": "gradual"}, "repair": repair}
    report = problem(client.post("/jobs", json=gradual), 422, "invalid_request")
    (flaw,) = report["errors"]
    assert flaw["param"] == "prune.schedule"
    assert "does not fit while it is dense: training needs" in flaw["rule"]
    assert '"micro_batch":' in flaw["way_out"]
    assert client.post("/jobs", json={**body, "repair": repair}).status_code == 202
    with sessions.begin() as session:
        session.execute(text("UPDATE workers SET seen_at = now() - interval '1 h'"))
    assert client.post("/jobs", json=gradual).status_code == 202


def test_a_refusal_does_not_blame_the_schedule_for_a_phase_that_does_not_depend_on_it(
    client: TestClient, sessions: sessionmaker[Session], body: Json
) -> None:
    with sessions.begin() as session:
        workers.record_heartbeat(session, "w1", Capability(CPU, "x86_64", 1 << 20, 1 << 40))
    repair = {"batch_tokens": 512, "micro_batch": 1, "retain": "none", "activation_checkpointing": True}
    gradual = {**body, "prune": {"schedule": "gradual"}, "repair": repair, "output": {"formats": ["dense", "compact"]}}
    without = {name: value for name, value in gradual.items() if name != "dataset"}
    (fit,) = estimated(client, **without)["workers"]
    assert fit["phase"] == "exporting"
    report = problem(client.post("/jobs", json=gradual), 422, "invalid_request")
    (flaw,) = report["errors"]
    assert flaw["param"] == "model"
    assert flaw["value"] == "'tiny'"
    assert "exporting needs" in flaw["rule"]
    assert "gradual" not in report["detail"]


def test_a_gradual_job_on_several_devices_is_compared_with_workers_that_have_them(
    client: TestClient, sessions: sessionmaker[Session], body: Json, worker: str
) -> None:
    repair = {"density": "all", "micro_batch": 2}
    gradual = {**body, "devices": 2, "prune": {"schedule": "gradual"}, "repair": repair}
    assert client.post("/jobs", json=gradual).status_code == 202, "a worker with two devices may come"
    with sessions.begin() as session:
        workers.record_heartbeat(session, "w2", Capability(CPU, "x86_64", 1 << 20, 1 << 40, devices=2))
    report = problem(client.post("/jobs", json=gradual), 422, "invalid_request")
    assert report["errors"][0]["rule"].endswith("and w2 has 0.0 GB")
    with sessions.begin() as session:
        workers.record_heartbeat(session, "w3", Capability(CPU, "x86_64", MEMORY, 1 << 40, devices=2))
    assert client.post("/jobs", json=gradual).status_code == 202


def test_only_a_job_that_waits_for_its_start_keeps_its_estimate(client: TestClient, body: Json, worker: str) -> None:
    waiting = client.post("/jobs", json={**body, "auto_start": False}).json()
    without = {name: value for name, value in body.items() if name != "dataset"}
    assert waiting["estimate"] == estimated(client, **without)
    assert client.get(f"/jobs/{waiting['id']}").json()["estimate"] == waiting["estimate"]
    assert client.post(f"/jobs/{waiting['id']}/start").json()["estimate"] == waiting["estimate"]
    assert client.post("/jobs", json=body).json()["estimate"] is None


def test_what_cannot_be_estimated_is_refused(client: TestClient, app: FastAPI) -> None:
    problem(client.post("/jobs/estimate", json={"model": "tiny"}), 422, "invalid_request")
    problem(client.post("/jobs/estimate", json={"model": "none", "sparsity": 0.5}), 422, "model_not_found")
    (root,) = app.state.services.settings.model_roots
    Path(root / "tiny" / "model.safetensors").write_bytes(b"no header")
    report = problem(client.post("/jobs/estimate", json={"model": "tiny", "sparsity": 0.5}), 422, "model_refused")
    assert report["param"] == "model"
