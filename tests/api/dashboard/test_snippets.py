"""The request snippets of a job's page create the same job again."""

import html
import json
import re
import shlex
from typing import Any

import pytest
from starlette.testclient import TestClient

from seft.client import http as client_module
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
    page = browser.show(f"/jobs/{job['id']}")
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
