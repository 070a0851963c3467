"""Models that can be repaired, including results of earlier jobs."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from huggingface_hub import constants
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from core import workers
from core.capability import CPU, Capability
from core.tables import Job
from tests import claims
from tests.api.conftest import SHA256, Json, NewClient, problem
from tests.hollow import CONTEXT, SHAPES, TEXTS, safetensors, write_hollow
from tests.hub import COMMIT, Repo, hub, use_hub


def listed(client: TestClient, **params: str | int) -> list[Json]:
    answer = client.get("/models", params=params)
    assert answer.status_code == 200, answer.text
    data: list[Json] = answer.json()["data"]
    return data


def test_local_models_are_listed_by_name_and_then_ones_own_results(
    client: TestClient, new_client: NewClient, root: Path, result: str, sessions: sessionmaker[Session]
) -> None:
    with sessions.begin() as session:
        workers.record_heartbeat(session, "small", Capability(CPU, "x86_64", 1 << 20, 1 << 40))
        workers.record_heartbeat(session, "large", Capability(CPU, "x86_64", 1 << 40, 1 << 40))
    write_hollow(root / "deep" / "owner" / "model")
    (write_hollow(root / "broken") / "model.safetensors").write_bytes(b"")
    (root / "empty").mkdir()
    models = listed(client)
    assert [(each["id"], each["kind"]) for each in models] == [
        ("deep/owner/model", "folder"),
        ("tiny", "folder"),
        (result, "result"),
    ]
    assert [each["revision"] for each in models] == [None, None, SHA256]
    assert models[2]["licence"] == "mit"
    for each in models:
        assert each["parameters"] == sum(shape[0] * (shape[1:] or (1,))[0] for shape in SHAPES.values())
        assert (each["architecture"], each["context"], each["fits_on"]) == ("llama", CONTEXT, ["large"])
        assert client.get(f"/models/{each['id']}").json() == each
    stranger = new_client("theirs")
    assert [each["id"] for each in listed(stranger)] == ["deep/owner/model", "tiny"]
    problem(stranger.get(f"/models/{result}"), 404, "not_found")


def test_a_result_without_its_files_is_not_listed_and_rejected(
    client: TestClient, app: FastAPI, body: Json, result: str
) -> None:
    app.state.services.storage.delete([f"jobs/{result}/1/result/config.json"])
    assert [each["id"] for each in listed(client)] == ["tiny"]
    report = problem(client.post("/jobs", json={**body, "model": result}), 422, "model_not_found")
    assert "no longer in the storage" in report["detail"]


def test_a_header_that_claims_more_than_its_file_is_refused(
    client: TestClient, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = {"model.layers.0.experts.up_proj": {"dtype": "F32", "shape": [10**12, 2, 2], "data_offsets": [0, 4]}}
    for folder in (root / "bomb", tmp_path / "repo"):
        (write_hollow(folder) / "model.safetensors").write_bytes(safetensors(bomb, 4))
    with hub({"owner/bomb": Repo(tmp_path / "repo")}) as endpoint:
        use_hub(monkeypatch, endpoint, tmp_path / "cache")
        for name in ("bomb", "owner/bomb"):
            report = problem(client.get(f"/models/{name}"), 422, "model_refused")
            assert "needs 16000000000000 bytes" in report["detail"]
    assert [each["id"] for each in listed(client)] == ["tiny"]


def test_pages_have_no_gaps(client: TestClient, root: Path, result: str) -> None:
    names = [write_hollow(root / f"model-{number}").name for number in range(4)]
    model_ids, after = list[str](), ""
    while page := listed(client, limit=2, **({"after": after} if after else {})):
        model_ids += [each["id"] for each in page]
        after = model_ids[-1]
    assert model_ids == [*names, "tiny", result]


def test_a_page_ends_after_as_many_skipped_models_as_it_may_list(client: TestClient, root: Path, result: str) -> None:
    for number in range(5):
        (write_hollow(root / f"broken-{number}") / "config.json").write_text("{")
    pages, query = list[tuple[int, int]](), {"limit": 2}
    model_ids = list[str]()
    while True:
        page = client.get("/models", params=query).json()
        pages.append((len(page["data"]), len(page["skipped"])))
        model_ids += [model["id"] for model in page["data"]]
        assert page["has_more"] == (page["next"] is not None)
        if not page["has_more"]:
            break
        query["after"] = page["next"]
    assert pages == [(0, 2), (0, 2), (2, 1)]
    assert model_ids == ["tiny", result]


def test_a_model_that_is_deleted_while_it_is_listed_is_skipped(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    snapshots = tmp_path / "cache" / "models--owner--gone" / "snapshots"
    write_hollow(snapshots / COMMIT)
    (snapshots / "deleted").symlink_to("nothing")
    page = client.get("/models").json()
    assert ([each["id"] for each in page["data"]], [each["id"] for each in page["skipped"]]) == (
        ["tiny"],
        ["owner/gone"],
    )
    assert "were deleted" in page["skipped"][0]["reason"]


def test_a_job_repairs_what_another_one_of_its_tenant_has_published(
    client: TestClient, new_client: NewClient, body: Json, result: str, sessions: sessionmaker[Session]
) -> None:
    job_view = client.post("/jobs", json={**body, "model": result}).json()
    assert job_view["spec"]["revision"] == SHA256
    again = client.post(f"/jobs/{job_view['id']}/clone", json={})
    assert again.status_code == 202, again.text
    wrong = client.post("/jobs", json={**body, "model": result, "revision": "main"})
    assert problem(wrong, 422, "invalid_request")["param"] == "revision"
    with sessions.begin() as session:
        claimed = claims.claim(session, "gpu-1", 60)
        assert claimed is not None
        names = {file["name"] for file in claimed.model_files}
        assert {"config.json", "model.safetensors"} <= names
        assert all(file["key"].startswith(f"jobs/{result}/1/result/") for file in claimed.model_files)
        job = session.get_one(Job, job_view["id"])
        assert job.id == claimed.job_id
    stranger = new_client("theirs")
    dataset = stranger.post("/datasets", files={"file": ("a.jsonl", TEXTS)}).json()["id"]
    answer = stranger.post("/jobs", json={**body, "dataset": dataset, "model": result})
    assert problem(answer, 422, "model_not_found")["param"] == "model"


def test_a_model_of_the_hub_is_described_without_its_weights(
    client: TestClient, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = Repo(write_hollow(tmp_path / "repo"))
    with hub({"owner/name": repo}) as endpoint:
        use_hub(monkeypatch, endpoint, tmp_path / "cache")
        model = client.get("/models/owner/name", params={"revision": "main"}).json()
        assert (model["kind"], model["revision"], model["licence"]) == ("hub", COMMIT, "apache-2.0")
        assert model["parameters"] == client.get("/models/tiny").json()["parameters"]
        problem(client.get("/models/owner/none"), 404, "not_found")
    assert not list((tmp_path / "cache").rglob("*"))
    problem(client.get("/models/nothing"), 404, "not_found")
    problem(client.get("/models/tiny", params={"revision": "main"}), 422, "invalid_request")
