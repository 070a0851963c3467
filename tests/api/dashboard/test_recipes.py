"""A job's request as its page gives it to be copied asks for that very job."""

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
    asked = {**body, "suffix": EVIL, "metadata": {EVIL: "ä"}, "repair": {"steps": 70, "learning_rate": 0.002}}
    made: Json = client.post("/jobs", json=asked).json()
    return made


@pytest.fixture
def recipes(browser: Browser, job: Json) -> dict[str, str]:
    page = browser.show(f"/jobs/{job['id']}")
    found = re.findall(r"<summary>(\w+)</summary>.*?<pre[^>]*>(.*?)</pre>", page, re.DOTALL)
    return {name: html.unescape(text) for name, text in found}


def test_as_json_and_for_curl(client: TestClient, job: Json, recipes: dict[str, str]) -> None:
    assert json.loads(recipes["JSON"]) == job["spec"]
    _, address, *options = shlex.split(recipes["curl"].replace("\\\n", ""))
    values = dict(zip(options[::2], options[1::2], strict=True))
    assert address.endswith("/jobs")
    again = client.post("/jobs", content=values["-d"], headers={"Content-Type": "application/json"}).json()
    assert again["spec"] == job["spec"]


def test_in_python(client: TestClient, job: Json, recipes: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Service:
        def __enter__(self) -> "Service":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def create_job(self, asked: Json) -> Any:
            return client.post("/jobs", json=asked).json()

    monkeypatch.setattr(client_module, "Client", Service)
    names: dict[str, Any] = {}
    exec(recipes["Python"], names)
    assert names["job"]["spec"] == job["spec"]
