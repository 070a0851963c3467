"""A tenant's hub token: what it gives access to, for whom, and that no response contains it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fastapi import FastAPI
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from api.app import make_app
from api.importer import Importer
from core.tables import HubToken
from tests.api.conftest import Json, NewClient, problem
from tests.hollow import TEXTS, write_hollow
from tests.hub import COMMIT, Repo, hub, use_hub

OURS, THEIRS = "hf_ours", "hf_theirs"


@dataclass
class Hub:
    """A hub with a private, a gated and an open model and a private dataset. Only `OURS` gives access to all."""

    cache: Path
    seen: list[tuple[str, str | None]] = field(default_factory=list)

    def tokens(self) -> set[str | None]:
        """Return the tokens that the hub received since the last call."""
        shown = {token for _, token in self.seen}
        self.seen.clear()
        return shown

    def cached(self) -> list[str]:
        return [path.name for path in self.cache.glob("models--*")]


@pytest.fixture
def shut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    model, data = write_hollow(tmp_path / "repo"), tmp_path / "data"
    data.mkdir()
    (data / "texts.jsonl").write_bytes(TEXTS)
    repos = {
        "acme/private": Repo(model, private=True, readers=(OURS,)),
        "acme/gated": Repo(model, gated=True, readers=(OURS,)),
        "acme/open": Repo(model),
        "acme/texts": Repo(data, private=True, readers=(OURS,)),
    }
    private_hub = Hub(tmp_path / "cache")
    with hub(repos, {OURS: "acme", THEIRS: "stranger"}, private_hub.seen) as endpoint:
        use_hub(monkeypatch, endpoint, private_hub.cache)
        yield private_hub


def give(client: TestClient, token: str) -> Json:
    answer = client.put("/hub-token", json={"token": token})
    assert answer.status_code == 200, answer.text
    row: Json = answer.json()
    return row


@pytest.fixture
def stranger(new_client: NewClient, shut: Hub) -> TestClient:
    """A client of another tenant, whose token has no access to our repositories."""
    other_client = new_client("theirs")
    give(other_client, THEIRS)
    return other_client


def dataset_of(client: TestClient) -> str:
    dataset_id: str = client.post("/datasets", files={"file": ("texts.jsonl", TEXTS)}).json()["id"]
    return dataset_id


def test_a_token_is_described_and_never_shown(client: TestClient, shut: Hub, sessions: sessionmaker[Session]) -> None:
    problem(client.get("/hub-token"), 404, "not_found")
    first = give(client, THEIRS)
    second = give(client, OURS)
    assert (second["name"], second["id"] != first["id"]) == ("acme", True)
    answers = [client.get("/hub-token"), client.get("/audit"), client.delete("/hub-token")]
    assert answers[0].json() == answers[2].json() == second
    assert [entry["action"] for entry in client.get("/audit", params={"limit": 3}).json()["data"]] == [
        "delete_hub_token",
        "put_hub_token",
        "put_hub_token",
    ]
    assert not [answer for answer in answers if OURS in answer.text]
    problem(client.get("/hub-token"), 404, "not_found")
    problem(client.delete("/hub-token"), 404, "not_found")


def test_a_token_is_kept_encrypted(client: TestClient, shut: Hub, sessions: sessionmaker[Session]) -> None:
    give(client, OURS)
    with sessions.begin() as session:
        row = session.scalars(select(HubToken)).one()
    assert OURS not in repr(vars(row))


def test_a_token_that_cannot_be_one_is_refused_and_not_repeated(client: TestClient, shut: Hub) -> None:
    for token in ("hf_nobody", "hf_with a space", "hf_of\nlines", "x" * 513, "", 40417):
        answer = client.put("/hub-token", json={"token": token})
        report = problem(answer, 422, "invalid_request")
        assert (report["param"], report["errors"][0]["value"]) == ("token", "(not shown)")
        assert not token or str(token) not in answer.text
        problem(client.get("/hub-token"), 404, "not_found")


def test_without_a_key_to_encrypt_with_no_token_is_taken(app: FastAPI, client: TestClient, shut: Hub) -> None:
    bare = make_app(app.state.services.settings.model_copy(update={"secret_key": None}))
    with TestClient(bare, headers=dict(client.headers)) as there:
        report = problem(there.put("/hub-token", json={"token": OURS}), 409, "conflict")
    assert report["param"] == "SEFT_SECRET_KEY"


def test_without_the_encryption_key_a_token_is_an_error_and_open_models_need_none(
    app: FastAPI, client: TestClient, shut: Hub
) -> None:
    give(client, OURS)
    bare = make_app(app.state.services.settings.model_copy(update={"secret_key": None}))
    with TestClient(bare, headers=dict(client.headers)) as there:
        report = problem(there.get("/models/acme/private"), 422, "invalid_request")
        assert "PUT /hub-token" in report["errors"][0]["way_out"]
        assert there.get("/models/acme/open").status_code == 200


def test_a_service_that_does_not_use_the_hub_takes_no_token(
    client: TestClient, shut: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    report = problem(client.put("/hub-token", json={"token": OURS}), 409, "conflict")
    assert report["detail"] == "The service does not use the hub (HF_HUB_OFFLINE)."


def test_an_unreachable_hub_accepts_no_token(client: TestClient, shut: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    problem(client.put("/hub-token", json={"token": OURS}), 502, "hub_unreachable")


@pytest.mark.parametrize("model", ["acme/private", "acme/gated"])
def test_a_token_opens_a_model_for_its_own_tenant_everywhere_and_for_no_other(
    client: TestClient, stranger: TestClient, shut: Hub, model: str
) -> None:
    give(client, OURS)
    body = {"model": model, "dataset": dataset_of(client), "sparsity": 0.6}
    preview = f"/datasets/{body['dataset']}/preview"
    shut.seen.clear()
    assert client.get(f"/models/{model}").json()["revision"] == COMMIT
    assert client.post("/jobs/estimate", json=body).status_code == 200
    assert client.post("/jobs", json=body).json()["spec"]["revision"] == COMMIT
    seen = client.get(preview, params={"model": model})
    assert seen.status_code == 200, seen.text
    assert shut.tokens() == {None, OURS}

    theirs = body | {"dataset": dataset_of(stranger)}
    code = "model_refused" if model == "acme/gated" else "model_not_found"
    for answer in (
        stranger.post("/jobs/estimate", json=theirs),
        stranger.post("/jobs", json=theirs),
        stranger.get(f"/datasets/{theirs['dataset']}/preview", params={"model": model}),
    ):
        report = problem(answer, 422, code)
        assert "PUT /hub-token" in report["errors"][0]["way_out"]
    assert stranger.get(f"/models/{model}").status_code in {404, 422}
    assert shut.tokens() == {None, THEIRS}
    assert shut.cached() == []
    for one in (client, stranger):
        assert model not in one.get("/models").text

    client.delete("/hub-token")
    problem(client.post("/jobs", json=body), 422, code)
    assert shut.tokens() == {None}


def test_an_open_model_is_asked_for_without_the_token(client: TestClient, shut: Hub) -> None:
    give(client, OURS)
    shut.seen.clear()
    assert client.get("/models/acme/open").status_code == 200
    assert (shut.tokens(), shut.cached()) == ({None}, [])


def test_a_token_that_the_hub_no_longer_accepts_is_an_error(
    client: TestClient, shut: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(client, OURS)
    with hub({"acme/private": Repo(shut.cache, private=True)}) as endpoint:
        use_hub(monkeypatch, endpoint, shut.cache)
        report = problem(client.get("/models/acme/private"), 422, "model_refused")
    assert "PUT /hub-token" in report["errors"][0]["way_out"]


def test_a_private_dataset_is_imported_by_its_own_tenant_alone(
    app: FastAPI, client: TestClient, stranger: TestClient, shut: Hub
) -> None:
    give(client, OURS)
    for one, status in ((client, "done"), (stranger, "failed")):
        pending = one.post("/imports", json={"source": "hf://datasets/acme/texts"}).json()
        assert Importer(app.state.services).poll()
        result = one.get(f"/imports/{pending['id']}").json()
        assert result["status"] == status, result
    assert (result["error"]["code"], "PUT /hub-token" in result["error"]["message"]) == ("not_found", True)
