"""The request snippets of a job's page create the same job again. Its commands run the model in each of its formats."""

import html
import json
import re
import shlex
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from core.jobs import attempts
from core.jobs.attempts import Attempt
from seft.cli import make_parser
from seft.client import http as client_module
from seft.runtime import commands
from tests.api.conftest import Json
from tests.api.dashboard.conftest import Browser

EVIL = 'it\'s <b>"so"</b> $HOME `id` \\'


@pytest.fixture
def job(client: TestClient, body: Json) -> Json:
    spec = {**body, "suffix": EVIL, "metadata": {EVIL: "ä"}, "repair": {"steps": 70, "learning_rate": 0.002}}
    created: Json = client.post("/jobs", json=spec).json()
    return created


@pytest.fixture
def snippets(browser: Browser, job: Json) -> dict[str, str]:
    return snippets_of(browser.show(f"/jobs/{job['id']}"))


def snippets_of(page: str) -> dict[str, str]:
    matches = re.findall(r"<summary>(\w+)</summary>.*?<pre[^>]*>(.*?)</pre>", page, re.DOTALL)
    return {name: html.unescape(text) for name, text in matches}


def test_json_and_curl_snippets(client: TestClient, job: Json, snippets: dict[str, str]) -> None:
    assert json.loads(snippets["JSON"]) == job["spec"]
    _, address, *options = shlex.split(snippets["curl"].replace("\\\n", ""))
    values = dict(zip(options[::2], options[1::2], strict=True))
    assert address.endswith("/jobs")
    copy = client.post("/jobs", content=values["-d"], headers={"Content-Type": "application/json"}).json()
    assert copy["spec"] == job["spec"]


def test_python_snippet(
    client: TestClient, job: Json, snippets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Service:
        def __enter__(self) -> "Service":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def create_job(self, spec: Json) -> Any:
            return client.post("/jobs", json=spec).json()

    monkeypatch.setattr(client_module, "Client", Service)
    names: dict[str, Any] = {}
    exec(snippets["Python"], names)
    assert names["job"]["spec"] == job["spec"]


def test_a_finished_job_shows_commands_that_download_and_run_its_model_in_every_format(
    browser: Browser, attempt: Attempt, sessions: sessionmaker[Session]
) -> None:
    names = ["README.md", "config.json", "manifest.json", "model-Q8_0.gguf", "model.safetensors", "model.seft"]
    assert not {"dense", "compact"} & snippets_of(browser.show(f"/jobs/{attempt.job_id}")).keys()
    files = [{"name": name, "size": 2, "sha256": "44"} for name in names]
    with sessions.begin() as session:
        attempts.publish(session, attempt, step=9, prefix="x/", sha256="44", files=files, scores={}, measured={})
    shown = snippets_of(browser.show(f"/jobs/{attempt.job_id}"))
    seft_commands = make_parser("seft")
    for format_, model in (("dense", "model"), ("compact", "model/model.seft"), ("gguf_q8_0", "model/model-Q8_0.gguf")):
        download, *run = (shlex.split(line) for line in shown[format_].splitlines())
        assert download == ["seft", "jobs", "download", attempt.job_id, "model", "--format", format_]
        if format_ == "gguf_q8_0":
            assert run == [["llama-cli", "--model", model, "--prompt", "Once upon a time"]]
        else:
            parsed = [seft_commands.parse_args(line[1:]) for line in run]
            assert [(each.run, each.model) for each in parsed] == [(commands.generate, model), (commands.serve, model)]
