"""A hostile model, or a hub that has one, costs its own request, and no other model, tenant or request."""

import json
import os
import tempfile
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from core.errors import Code, Flaw, ProblemError
from core.models.resolver import MAX_TOKENIZER_BYTES
from seft.errors import SourceError
from seft.models.hub_files import read_part
from seft.models.limits import MAX_FILE_BYTES
from seft.models.source import find_on_hub
from tests.api.conftest import Json, NewClient, problem
from tests.hollow import CONFIG, safetensors, write_hollow
from tests.hub import COMMIT, Repo, hub, use_hub
from tests.serving import Quiet, serving

ONE = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
NUL, SURROGATE = "x\0ForCausalLM", "x\ud800ForCausalLM"


def write_config(folder: Path, **values: object) -> Path:
    """Write a model whose configuration has these values."""
    (write_hollow(folder) / "config.json").write_text(json.dumps({**CONFIG, **values}))
    return folder


def cache(repo: Path, name: str, at: Path) -> None:
    """Copy a model into the hub cache, as a download does."""
    folder = at / f"models--owner--{name}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots").mkdir()
    repo.rename(folder / "snapshots" / COMMIT)


def test_an_odd_model_is_skipped_and_named_and_hides_no_other(
    client: TestClient, new_client: NewClient, root: Path, tmp_path: Path
) -> None:
    write_config(root / "nul", architectures=[NUL])
    write_config(root / "surrogate", architectures=[SURROGATE])
    write_config(root / "typed", model_type=["a", {"b": "c"}], licence={})
    write_config(root / "wide", architectures=["A" * 5000 + "ForCausalLM"])
    write_config(root / "digits", max_position_embeddings=10**4000)
    number = {f"model.layers.{'9' * 5000}.proj.weight": ONE}
    (write_hollow(root / "block") / "model.safetensors").write_bytes(safetensors(number, 24))
    pickles = write_hollow(root / "pickles")
    (pickles / "model.safetensors").rename(pickles / os.fsdecode(b"\xff.bin"))
    write_hollow(root / "name").rename(root / os.fsdecode(b"name-\xff"))
    cache(write_config(tmp_path / "one", architectures=[SURROGATE]), "odd", tmp_path / "cache")
    cache(write_hollow(tmp_path / "two"), "good", tmp_path / "cache")
    for each in (client, new_client("theirs")):
        answer = each.get("/models")
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert [model["id"] for model in page["data"]] == ["owner/good", "tiny"]
        reasons = {model["id"]: model["reason"] for model in page["skipped"]}
    odd = {
        "block",
        "digits",
        "name-\N{REPLACEMENT CHARACTER}",
        "nul",
        "owner/odd",
        "pickles",
        "surrogate",
        "typed",
        "wide",
    }
    assert set(reasons) == odd
    assert "may contain NUL or half of a surrogate pair" in reasons["owner/odd"]
    assert all(len(reason) < 500 for reason in reasons.values())


def test_the_texts_of_a_problem_can_be_sent_and_stored() -> None:
    error = ProblemError(Code.MODEL_REFUSED, f"no {SURROGATE}", (Flaw("model", NUL, SURROGATE, "Rename it."),))
    shown = "x\N{REPLACEMENT CHARACTER}ForCausalLM"
    assert (str(error), error.message, error.flaws) == (
        f"no {shown}",
        f"no {shown}",
        (Flaw("model", shown, shown, "Rename it."),),
    )


@pytest.mark.parametrize("value", [NUL, SURROGATE])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_text_that_cannot_be_stored_is_refused_before_the_job_exists(
    client: TestClient, body: Json, root: Path, value: str, file: str
) -> None:
    path = write_hollow(root / "odd") / file
    content = json.loads(path.read_bytes())
    for changed in ({**content, "model_type": value}, {**content, "deep": [{value: 1}]}):
        path.write_text(json.dumps(changed))
        for more in ({}, {"auto_start": False}):
            report = problem(client.post("/jobs", json={**body, "model": "odd", **more}), 422, "model_refused")
            assert "half of a surrogate pair" in report["detail"]
    assert client.get("/jobs").json()["data"] == []


def test_the_size_of_a_file_on_the_hub_is_checked_before_it_is_read(
    client: TestClient, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str | None]] = []
    files = ("config.json", "tokenizer_config.json", "model.safetensors.index.json")
    repos = {f"owner/{file}": Repo(write_hollow(tmp_path / file)) for file in files}
    (tmp_path / files[-1] / "model.safetensors").unlink()  # the index is ignored if this file exists
    for file in files:
        with (tmp_path / file / file).open("ab") as grown:
            grown.truncate(3 << 30)  # a sparse file
    with hub(repos, seen=seen) as endpoint:
        use_hub(monkeypatch, endpoint, tmp_path / "cache")
        for name in repos:
            report = problem(client.get(f"/models/{name}"), 422, "model_refused")
            assert f"may have at most {MAX_FILE_BYTES} bytes" in report["detail"]
    read = [path for path, _ in seen if "/resolve/" in path]
    assert read
    assert not [path for path in read for file in files if path.startswith(f"/owner/{file}/") and path.endswith(file)]
    assert not list((tmp_path / "cache").rglob("*"))


def test_no_more_of_a_file_is_read_than_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (write_hollow(tmp_path / "repo") / "config.json").write_bytes(bytes(1 << 25))
    with hub({"owner/name": Repo(tmp_path / "repo")}) as endpoint:
        use_hub(monkeypatch, endpoint, tmp_path / "cache")
        assert read_part("owner/name", "config.json", 5, 1000, revision=None, token=None) == bytes(1000)


@pytest.mark.parametrize("status", [200, 302, 404])
@pytest.mark.parametrize("headers", [{}, {"X-Error-Code": "RepoNotFound"}])
def test_no_answer_of_a_hub_is_read_without_limit(
    status: int, headers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = list[int]()

    class Endless(Quiet, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in {**headers, "Location": "/api/models/owner/name"}.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):
                while sum(sent) < 256 << 20:
                    sent.append(self.wfile.write(bytes(1 << 20)))

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Endless)) as server:
        use_hub(monkeypatch, f"http://127.0.0.1:{server.server_address[1]}", tmp_path / "cache")
        with pytest.raises(SourceError):
            find_on_hub("owner/name", None)
    assert sum(sent) < 128 << 20


def test_a_private_model_in_shards_leaves_nothing_in_the_cache(
    new_client: NewClient, app: FastAPI, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, stranger = new_client("ours"), new_client("theirs")
    repo = write_hollow(tmp_path / "repo")
    (repo / "model.safetensors").rename(repo / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"model.embed_tokens.weight": "model-00001-of-00001.safetensors"}}
    (repo / "model.safetensors.index.json").write_text(json.dumps(index))
    private = Repo(repo, private=True, readers=("hf_ours",))
    with hub({"acme/secret": private}, {"hf_ours": "acme"}) as endpoint:
        use_hub(monkeypatch, endpoint, tmp_path / "cache")
        assert client.put("/hub-token", json={"token": "hf_ours"}).status_code == 200
        assert client.get("/models/acme/secret").status_code == 200
        assert not list((tmp_path / "cache").rglob("*"))
        assert "secret" not in stranger.get("/models").text
        assert "acme/secret" not in app.state.services.catalogue.names("theirs", 50)
        problem(stranger.get("/models/acme/secret"), 404, "not_found")


def test_the_tokenizer_of_a_result_is_deleted_after_its_preview(
    client: TestClient, dataset: str, result: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    answer = client.get(f"/datasets/{dataset}/preview", params={"model": result})
    assert answer.status_code == 200, answer.text
    assert not list((tmp_path / "temporary").iterdir())


def test_a_tokenizer_that_is_too_large_is_not_downloaded(
    client: TestClient, dataset: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = write_hollow(tmp_path / "repo")
    with (repo / "tokenizer.json").open("ab") as grown:
        grown.truncate(MAX_TOKENIZER_BYTES)
    with hub({"owner/name": Repo(repo)}) as endpoint:
        use_hub(monkeypatch, endpoint, tmp_path / "cache")
        report = problem(
            client.get(f"/datasets/{dataset}/preview", params={"model": "owner/name"}), 422, "model_refused"
        )
    assert f"at most {MAX_TOKENIZER_BYTES} bytes" in report["detail"]
