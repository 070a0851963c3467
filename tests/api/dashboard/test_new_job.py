"""The form of a new job takes what `POST /jobs` takes, refuses what it refuses, and says it beside the field."""

import re
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from api.dashboard import forms
from api.dashboard.words import size
from core import workers
from core.capability import CPU, Capability
from core.specs import JobSpec
from tests.api.conftest import Json
from tests.api.dashboard.conftest import ROOT, Browser, visible


def fields_of(page: str) -> dict[str, str]:
    """What a browser would send of the page's form, unchanged."""
    form = page[page.index('class="job-form"') :]
    found = dict(re.findall(r'<input type="(?:text|hidden)"[^>]* name="([^"]+)"[^>]* value="([^"]*)"', form))
    found |= dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', form))
    found |= dict(re.findall(r'<textarea[^>]* name="([^"]+)"[^>]*>([^<]*)<', form))
    found |= dict.fromkeys(re.findall(r'<input type="checkbox"[^>]* name="([^"]+)"[^>]* checked', form), "true")
    for name, options in re.findall(r'<select[^>]* name="([^"]+)"[^>]*>(.*?)</select>', form, re.DOTALL):
        chosen = re.search(r'value="([^"]*)" selected', options) or re.search(r'value="([^"]*)"', options)
        assert chosen
        found[name] = chosen[1]
    return found


@pytest.fixture
def filled(browser: Browser, dataset: str) -> Json:
    return {**fields_of(browser.show(f"/jobs/new?dataset={dataset}")), "model": "tiny", "sparsity": "0.6"}


def made(client: TestClient, answer: Any) -> Json:
    assert answer.status_code == 303, visible(answer.text)
    job: Json = client.get(answer.headers["location"].removeprefix(ROOT)).json()
    return job


def test_the_form_as_it_is_asks_for_the_defaults(
    browser: Browser, client: TestClient, filled: Json, body: Json
) -> None:
    job = made(client, browser.post(f"{ROOT}/jobs", data=filled))
    assert job["spec"] == client.post("/jobs", json=body).json()["spec"]


def test_every_setting_of_a_job_has_a_field(browser: Browser, dataset: str) -> None:
    def names(schema: Json, before: str = "") -> set[str]:
        found: set[str] = set()
        for name, value in schema.items():
            part = isinstance(value, dict) and (before + name) != "metadata"
            found |= names(value, f"{before}{name}.") if part else {before + name}
        return found

    spec = JobSpec(model="tiny", dataset=dataset, sparsity=0.5).model_dump(mode="json")
    assert {field.name for field in forms.inputs({})} == names(spec)


def test_ranges_are_told_in_numbers_that_a_person_reads(browser: Browser) -> None:
    page = browser.show("/jobs/new")
    for least, most in (("1", "1\u202f000\u202f000"), ("0.000001", "1")):
        assert f'<span class="num">{least} \N{EN DASH} {most}</span>' in page


def test_what_is_entered_is_asked_for(browser: Browser, client: TestClient, filled: Json) -> None:
    del filled["auto_start"]
    changes = {
        "repair.steps": "70",
        "repair.learning_rate": "0.002",
        "prune.method": "wanda",
        "metadata": "team=a=b\nx=1",
    }
    job = made(client, browser.post(f"{ROOT}/jobs", data={**filled, **changes, "suffix": "mine", "seed": ""}))
    spec = job["spec"]
    assert (spec["repair"]["steps"], spec["repair"]["learning_rate"], spec["prune"]["method"]) == (70, 0.002, "wanda")
    assert (spec["metadata"], spec["suffix"], spec["seed"]) == ({"team": "a=b", "x": "1"}, "mine", 0)
    assert job["status"] == "paused"


@pytest.mark.parametrize(
    ("change", "at"),
    [
        ({"sparsity": "1.5"}, "sparsity"),
        ({"sparsity": ""}, "sparsity"),
        ({"repair.steps": "many"}, "repair.steps"),
        ({"model": "nowhere"}, "model"),
        ({"dataset": ""}, "dataset"),
        ({"dataset": "file_01jz5h4c8m2v9q7w3t6x0y1b2d"}, "dataset"),
        ({"metadata": "no pair"}, "metadata"),
        ({"pattern": "2:4"}, "pattern"),
    ],
)
def test_a_mistake_is_told_beside_its_field_and_nothing_is_lost(
    browser: Browser, client: TestClient, filled: Json, change: Json, at: str
) -> None:
    answer = browser.post(f"{ROOT}/jobs", data={**filled, "suffix": "kept", **change})
    assert answer.status_code == 422
    assert f'id="{at}-wrong"' in answer.text
    assert re.search(rf'<(input|select|textarea)[^>]* id="{at}"[^>]* aria-invalid="true"', answer.text)
    again = fields_of(answer.text)
    assert again["suffix"] == "kept"
    assert {name: again[name] for name in change} == change
    assert client.get("/jobs").json()["data"] == []


def test_the_form_says_what_the_api_says(browser: Browser, client: TestClient, filled: Json, body: Json) -> None:
    report = client.post("/jobs", json={**body, "repair": {"batch_tokens": 1000, "sequence_tokens": 512}}).json()
    answer = browser.post(f"{ROOT}/jobs", data={**filled, "repair.batch_tokens": "1000"})
    text = " ".join(visible(answer.text).split())
    for error in report["errors"]:
        assert error["param"] in text
        assert error["rule"].removeprefix("Value error, ") in text


def test_a_form_sent_twice_makes_one_job_and_a_changed_one_another(
    browser: Browser, client: TestClient, filled: Json
) -> None:
    jobs = [
        made(client, browser.post(f"{ROOT}/jobs", data={**filled, **more}))["id"] for more in ({}, {}, {"seed": "3"})
    ]
    assert jobs[0] == jobs[1] != jobs[2]


def test_the_form_tells_what_the_job_would_take_and_what_it_lacks(
    browser: Browser, client: TestClient, filled: Json, sessions: sessionmaker[Session]
) -> None:
    def told(**change: str) -> str:
        answer = browser.post(f"{ROOT}/jobs/estimate", data={**filled, **change})
        assert answer.status_code == 200
        return " ".join(visible(answer.text).split())

    assert told(model="") == "Name a model to see what the job will take."
    assert told(sparsity="7").startswith("sparsity: ")
    assert "nowhere" in told(model="nowhere", dataset="")
    assert "No worker is here" in told()
    asked = {"micro_batch": 256, "sequence_tokens": 16384, "batch_tokens": 256 * 16384}
    with sessions.begin() as session:
        workers.record_heartbeat(session, "gpu-1:7:x", Capability(CPU, "x86_64", 4 << 30, 1 << 40))
    (fit,) = client.post("/jobs/estimate", json={"model": "tiny", "sparsity": 0.6}).json()["workers"]
    assert told().startswith(f"Fits on gpu-1 , {size(fit['needed_bytes'])} of 4.3 GB, most in {fit['phase']}")
    large = told(**{f"repair.{name}": str(value) for name, value in asked.items()})
    assert large.startswith("Fits no worker : training takes")
    assert "It would with repair.micro_batch = " in large
    assert client.get("/jobs").json()["data"] == []


def test_a_clone_asks_for_the_same_but_for_what_was_changed(browser: Browser, client: TestClient, body: Json) -> None:
    asked = {
        **body,
        "suffix": "first",
        "metadata": {"team": "x"},
        "repair": {"steps": 33},
        "prune": {"method": "wanda"},
    }
    former = client.post("/jobs", json=asked).json()
    form = fields_of(browser.show(f"/jobs/new?clone={former['id']}"))
    job = made(client, browser.post(f"{ROOT}/jobs", data={**form, "sparsity": "0.7"}))
    assert job["spec"] == {**former["spec"], "sparsity": 0.7}
    assert client.get("/audit").json()["data"][0]["action"] == "clone_job"
