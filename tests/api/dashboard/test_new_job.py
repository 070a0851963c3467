"""The form of a new job accepts and rejects the same as `POST /jobs`, and shows errors at the fields."""

import html
import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from api.dashboard import forms
from api.dashboard.formatting import size
from core import workers
from core.capability import CPU, Capability
from core.specs import JobSpec
from tests.api.conftest import Json
from tests.api.dashboard.conftest import ROOT, Browser, visible
from tests.api.test_fit import SHORT, UNFIT
from tests.core.conftest import FLOPS
from tests.hollow import write_hollow


def fields_of(page: str) -> dict[str, str]:
    """Return the fields that a browser would send if the form was not changed."""
    form = page[page.index('class="job-form"') :]
    fields = dict(re.findall(r'<input type="(?:text|hidden)"[^>]* name="([^"]+)"[^>]* value="([^"]*)"', form))
    fields |= dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', form))
    fields |= dict(re.findall(r'<textarea[^>]* name="([^"]+)"[^>]*>([^<]*)<', form))
    fields |= dict.fromkeys(re.findall(r'<input type="checkbox"[^>]* name="([^"]+)"[^>]* checked', form), "true")
    for name, options in re.findall(r'<select[^>]* name="([^"]+)"[^>]*>(.*?)</select>', form, re.DOTALL):
        selected = re.search(r'value="([^"]*)" selected', options) or re.search(r'value="([^"]*)"', options)
        assert selected
        fields[name] = selected[1]
    return fields


@pytest.fixture
def filled(browser: Browser, dataset: str) -> Json:
    return {**fields_of(browser.show(f"/jobs/new?dataset={dataset}")), "model": "tiny", "sparsity": "0.6"}


def created_job(client: TestClient, response: Any) -> Json:
    assert response.status_code == 303, visible(response.text)
    job: Json = client.get(response.headers["location"].removeprefix(ROOT)).json()
    return job


def test_unchanged_form_creates_a_job_with_the_defaults(
    browser: Browser, client: TestClient, filled: Json, body: Json
) -> None:
    job = created_job(client, browser.post(f"{ROOT}/jobs/new", data=filled))
    assert job["spec"] == client.post("/jobs", json=body).json()["spec"]


def test_form_accepts_a_word_as_density_and_shows_a_contradiction_at_its_field(
    browser: Browser, client: TestClient, filled: Json
) -> None:
    gradual = {**filled, "prune.schedule": "gradual"}
    response = browser.post(f"{ROOT}/jobs/new", data={**gradual, "repair.density": "0.1"})
    assert response.status_code == 422
    assert "must be all with the schedule gradual" in visible(response.text)
    job = created_job(client, browser.post(f"{ROOT}/jobs/new", data={**gradual, "repair.density": "all"}))
    assert (job["spec"]["prune"]["schedule"], job["spec"]["repair"]["density"]) == ("gradual", "all")


def test_every_setting_of_a_job_has_a_field(browser: Browser, dataset: str) -> None:
    def names(schema: Json, prefix: str = "") -> set[str]:
        paths: set[str] = set()
        for name, value in schema.items():
            nested = isinstance(value, dict) and (prefix + name) != "metadata"
            paths |= names(value, f"{prefix}{name}.") if nested else {prefix + name}
        return paths

    spec = JobSpec(model="tiny", dataset=dataset, sparsity=0.5).model_dump(mode="json")
    assert {field.name for field in forms.form_fields({})} == names(spec)


def test_ranges_are_shown_as_readable_numbers(browser: Browser) -> None:
    page = browser.show("/jobs/new")
    for minimum, maximum in (("1", "1\u202f000\u202f000"), ("0", "0.99")):
        assert f'<span class="num">{minimum} \N{EN DASH} {maximum}</span>' in page
    ranges = {field.name: field.range for field in forms.form_fields({})}
    assert [field.name for field in forms.form_fields({}) if field.numeric and not field.range] == []
    assert ranges["prune.reconstruct_learning_rate"] == "1e-8 \N{EN DASH} 1"
    assert ranges["evaluate.held_out"] == "above 0, below 1"
    assert ranges["seed"] == "at least 0, below 9\u202f223\u202f372\u202f036\u202f854\u202f775\u202f808"


def test_help_texts_are_about_the_form(browser: Browser, other_dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page = browser.show("/jobs/new")
    assert "`" not in page
    assert "if <code>retain</code> is" in page
    assert "POST /" not in visible(page)
    assert "Separate several with commas.</p>" in page[page.index('id="output.formats-help"') :]
    assert '<select id="dataset"' in page
    monkeypatch.setattr("api.dashboard.pages.new_job.DATASET_CHOICES", 1)
    assert '<select id="dataset"' in browser.show("/jobs/new"), "all datasets are in the selection"


def test_with_many_datasets_any_dataset_can_be_entered(
    browser: Browser, client: TestClient, filled: Json, other_dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.dashboard.pages.new_job.DATASET_CHOICES", 1)
    page = browser.show(f"/jobs/new?dataset={filled['dataset']}")
    assert re.findall(r'<option value="(file_\w+)"', page) == [other_dataset]
    assert "Only the newest 1 are suggested." in page
    for name in ("dataset", "repair.retain_dataset", "evaluate.dataset"):
        assert re.search(rf'<input type="text" id="{name}"[^>]* list="datasets"', page)
    sent = {**fields_of(page), "model": "tiny", "sparsity": "0.6"}
    job = created_job(client, browser.post(f"{ROOT}/jobs/new", data=sent))
    assert job["spec"]["dataset"] == filled["dataset"]


def test_a_link_fills_in_settings_for_a_cpu(browser: Browser) -> None:
    link = re.search(rf'href="{ROOT}(/jobs/new\?cpu=true)"', page := browser.show("/jobs/new"))
    assert link
    small, before = fields_of(browser.show(link[1])), fields_of(page)
    changed = {name: value for name, value in small.items() if value != before[name] and name != "nonce"}
    assert changed == {
        "prune.calibration.samples": "8",
        "prune.calibration.tokens": "512",
        "repair.steps": "14",
        "repair.retain_tokens": "4096",
        "evaluate.windows": "8",
        "evaluate.tokens": "512",
    }


@pytest.mark.parametrize("nonce", ["\0", "x" * 4096, ""])
def test_a_form_with_an_odd_nonce_creates_a_job(browser: Browser, client: TestClient, filled: Json, nonce: str) -> None:
    assert created_job(client, browser.post(f"{ROOT}/jobs/new", data={**filled, "nonce": nonce}))["attempt"] == 0


def test_entered_values_reach_the_job(browser: Browser, client: TestClient, filled: Json) -> None:
    del filled["auto_start"]
    changes = {
        "repair.steps": "70",
        "repair.learning_rate": "0.002",
        "prune.method": "wanda",
        "metadata": "team=a=b\nx=1",
    }
    job = created_job(
        client, browser.post(f"{ROOT}/jobs/new", data={**filled, **changes, "suffix": "mine", "seed": ""})
    )
    spec = job["spec"]
    assert (spec["repair"]["steps"], spec["repair"]["learning_rate"], spec["prune"]["method"]) == (70, 0.002, "wanda")
    assert (spec["metadata"], spec["suffix"], spec["seed"]) == ({"team": "a=b", "x": "1"}, "mine", 0)
    assert job["status"] == "paused"


def test_null_and_spaces_around_a_pair_are_read_as_meant(browser: Browser, client: TestClient, filled: Json) -> None:
    change = {"repair.clip_norm": "null", "repair.batch_tokens": "null", "metadata": " team =  search one "}
    spec = created_job(client, browser.post(f"{ROOT}/jobs/new", data={**filled, **change}))["spec"]
    assert (spec["repair"]["clip_norm"], spec["repair"]["batch_tokens"]) == (None, 1024)
    assert spec["metadata"] == {"team": "search one"}


def test_a_dataset_to_retain_is_selected_and_the_page_of_the_job_links_both(
    browser: Browser, client: TestClient, filled: Json, dataset: str, other_dataset: str
) -> None:
    change = {"repair.retain": "dataset", "repair.retain_dataset": other_dataset}
    page = browser.show("/jobs/new")
    select = page[page.index('<select id="repair.retain_dataset"') :]
    options = re.findall(r'<option value="([^"]*)"', select[: select.index("</select>")])
    assert set(options) == {"", other_dataset, dataset}
    response = browser.post(f"{ROOT}/jobs/new", data={**filled, "repair.retain": "dataset"})
    assert 'id="repair.retain_dataset-error"' in response.text
    job = created_job(client, browser.post(f"{ROOT}/jobs/new", data={**filled, **change}))
    assert job["spec"]["repair"]["retain_dataset"] == other_dataset
    links = set(re.findall(rf'href="{ROOT}/datasets/(file_\w+)"', browser.show(f"/jobs/{job['id']}")))
    assert links == {dataset, other_dataset}
    assert fields_of(browser.show(f"/jobs/new?clone={job['id']}"))["repair.retain_dataset"] == other_dataset
    client.post(f"/jobs/{job['id']}/cancel")
    client.delete(f"/datasets/{other_dataset}")
    page = browser.show(f"/jobs/{job['id']}")
    assert "other.jsonl deleted" in " ".join(visible(page).split())
    assert other_dataset not in re.findall(rf'href="{ROOT}/datasets/(file_\w+)"', page)


def test_dataset_to_evaluate_on_is_selected_in_the_form(
    browser: Browser, client: TestClient, filled: Json, dataset: str, other_dataset: str
) -> None:
    assert filled["evaluate.held_out"] == "", "its default depends on the dataset"
    change = {"evaluate.dataset": other_dataset}
    response = browser.post(f"{ROOT}/jobs/new", data={**filled, **change, "evaluate.held_out": "0.2"})
    assert (response.status_code, 'id="evaluate.held_out-error"' in response.text) == (422, True)
    job = created_job(client, browser.post(f"{ROOT}/jobs/new", data={**filled, **change}))
    assert (job["spec"]["evaluate"]["dataset"], job["spec"]["evaluate"]["held_out"]) == (other_dataset, None)
    page = browser.show(f"/jobs/{job['id']}")
    assert "Evaluation dataset other.jsonl" in " ".join(visible(page).split())
    form = fields_of(browser.show(f"/jobs/new?clone={job['id']}"))
    assert (form["evaluate.dataset"], form["evaluate.held_out"]) == (other_dataset, "")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"sparsity": "1.5"}, "sparsity"),
        ({"sparsity": ""}, "sparsity"),
        ({"repair.steps": "many"}, "repair.steps"),
        ({"model": "nowhere"}, "model"),
        ({"dataset": ""}, "dataset"),
        ({"dataset": "file_01jz5h4c8m2v9q7w3t6x0y1b2d"}, "dataset"),
        ({"repair.retain_dataset": "file_01jz5h4c8m2v9q7w3t6x0y1b2d"}, "repair.retain_dataset"),
        (
            {"repair.retain": "dataset", "repair.retain_dataset": "file_01jz5h4c8m2v9q7w3t6x0y1b2d"},
            "repair.retain_dataset",
        ),
        ({"metadata": "no pair"}, "metadata"),
        ({"pattern": "2:4"}, "sparsity"),
        ({"pattern": "4:2"}, "pattern"),
    ],
)
def test_error_is_shown_at_its_field_and_all_values_are_kept(
    browser: Browser, client: TestClient, filled: Json, change: Json, field: str
) -> None:
    response = browser.post(f"{ROOT}/jobs/new", data={**filled, "suffix": "kept", **change})
    assert response.status_code == 422
    assert f'id="{field}-error"' in response.text
    assert re.search(rf'<(input|select|textarea)[^>]* id="{field}"[^>]* aria-invalid="true"', response.text)
    fields = fields_of(response.text)
    assert fields["suffix"] == "kept"
    assert {name: fields[name] for name in change} == change
    assert client.get("/jobs").json()["data"] == []


def test_unknown_field_of_the_form_is_refused_as_the_api_refuses_it(
    browser: Browser, client: TestClient, filled: Json
) -> None:
    response = browser.post(f"{ROOT}/jobs/new", data={**filled, "repair.step": "5"})
    assert response.status_code == 422
    text = " ".join(visible(response.text).split())
    assert "repair.step : There is no such field; it is '5'. Did you mean 'repair.steps'?" in text
    assert client.get("/jobs").json()["data"] == []


def test_form_shows_the_same_errors_as_the_api(browser: Browser, client: TestClient, filled: Json, body: Json) -> None:
    report = client.post("/jobs", json={**body, "repair": {"batch_tokens": 1000, "sequence_tokens": 512}}).json()
    response = browser.post(f"{ROOT}/jobs/new", data={**filled, "repair.batch_tokens": "1000"})
    text = " ".join(visible(response.text).split())
    for error in report["errors"]:
        assert error["param"] in text
        assert error["rule"].removeprefix("Value error, ") in text


def test_form_sent_twice_creates_one_job_and_a_changed_form_another(
    browser: Browser, client: TestClient, filled: Json
) -> None:
    jobs = [
        created_job(client, browser.post(f"{ROOT}/jobs/new", data={**filled, **more}))["id"]
        for more in ({}, {}, {"seed": "3"})
    ]
    assert jobs[0] == jobs[1] != jobs[2]


def test_estimate_shows_what_the_job_needs_or_what_the_form_lacks(
    browser: Browser, client: TestClient, filled: Json, sessions: sessionmaker[Session]
) -> None:
    def estimate(**change: str) -> str:
        response = browser.post(f"{ROOT}/jobs/estimate", data={**filled, **change})
        assert response.status_code == 200
        return " ".join(visible(response.text).split())

    assert estimate(model="") == "Enter a model to see what the job needs."
    assert estimate(sparsity="", dataset="") == "Fill in sparsity to see what the job needs."
    assert "No worker is connected" in estimate()
    large = {"micro_batch": 256, "sequence_tokens": 16384, "batch_tokens": 256 * 16384}
    with sessions.begin() as session:
        workers.record_heartbeat(session, "gpu-1:7:x", Capability(CPU, "x86_64", 4 << 30, 1 << 40))
    (fit,) = client.post("/jobs/estimate", json={"model": "tiny", "sparsity": 0.6}).json()["workers"]
    assert estimate().startswith(f"Fits on gpu-1 , {size(fit['needed_bytes'])} of 4.3 GB, peak in {fit['phase']}")
    with sessions.begin() as session:
        workers.record_flops(session, "gpu-1:7:x", FLOPS)
    assert re.search(r"Fits on gpu-1 , about .* time from a short calibration of the device", estimate())
    text = estimate(**{f"repair.{name}": str(value) for name, value in large.items()})
    assert text.startswith("Does not fit on any worker : training needs")
    assert "gpu-1 has 3.9 GB for a job, of 4.3 GB" in text
    assert "It fits with repair.batch_tokens = " in text
    assert estimate(devices="2").startswith("Does not fit on any worker : gpu-1 has 1 of 2 devices It fits with")
    with sessions.begin() as session:
        workers.record_heartbeat(session, "a-tiny:7:x", Capability(CPU, "x86_64", 1 << 20, 1 << 40))
    assert "gpu-1 has 1 of 2 devices It fits with devices = 1" in estimate(devices="2"), "both of one worker"
    assert client.get("/jobs").json()["data"] == []


LIVE = {
    "percentage": ({"sparsity": "60"}, "sparsity", "Write 0.6 for 60 %."),
    "word": ({"repair.steps": "many"}, "repair.steps", "is 'many'"),
    "model": ({"model": "nowhere"}, "model", "nowhere"),
    "pair": ({"metadata": "no pair"}, "metadata", "Write it as team=search"),
    "entry": ({"metadata": f"team={'x' * 600}"}, "metadata", "at most 512"),
}


@pytest.mark.parametrize(("change", "field", "words"), LIVE.values(), ids=LIVE)
def test_while_the_form_is_filled_in_each_error_comes_for_its_field(
    browser: Browser, filled: Json, change: Json, field: str, words: str
) -> None:
    part = browser.post(f"{ROOT}/jobs/estimate", data={**filled, **change}).text
    errors = part[part.index("<template data-flaws>") : part.index("</template>")]
    assert re.findall(r'id="([\w.]+)-error"', errors) == [field]
    assert words in visible(errors)
    assert f"Correct {field} to see what the job needs." in visible(part)
    sent = browser.post(f"{ROOT}/jobs/new", data={**filled, **change}).text
    assert f'id="{field}-error"' in sent
    assert words in visible(sent)


def test_fields_that_are_still_empty_are_not_wrong_yet(browser: Browser, filled: Json) -> None:
    part = browser.post(f"{ROOT}/jobs/estimate", data={**filled, "sparsity": "", "dataset": ""}).text
    assert "<template data-flaws></template>" in part


def test_clone_copies_all_settings_except_the_changed_ones(browser: Browser, client: TestClient, body: Json) -> None:
    spec = {
        **body,
        "suffix": "first",
        "metadata": {"team": "x"},
        "repair": {"steps": 33},
        "prune": {"method": "wanda"},
    }
    original = client.post("/jobs", json=spec).json()
    form = fields_of(browser.show(f"/jobs/new?clone={original['id']}"))
    job = created_job(client, browser.post(f"{ROOT}/jobs/new", data={**form, "sparsity": "0.7"}))
    assert job["spec"] == {**original["spec"], "sparsity": 0.7}
    assert client.get("/audit").json()["data"][0]["action"] == "clone_job"


ODD_PAIRS = {
    "a=b": "c",
    "": "no name",
    "{": "}",
    '{"x": "': '"}',
    "é\u2028": "\x85",
    "empty": "",
    "b": " c ",
    "lines": "one\r\n\ntwo=2\n",
    "json": '{"a": 1}',
    '{"a":"b"}': "c=d",
    "emoji": "\N{GRINNING FACE}",
    "=": "=",
}


def test_clone_keeps_every_metadata_pair(browser: Browser, client: TestClient, body: Json) -> None:
    original = client.post("/jobs", json={**body, "metadata": ODD_PAIRS}).json()
    form = fields_of(browser.show(f"/jobs/new?clone={original['id']}"))
    sent = {**form, "metadata": html.unescape(form["metadata"]).replace("\n", "\r\n"), "seed": "1"}
    assert created_job(client, browser.post(f"{ROOT}/jobs/new", data=sent))["spec"]["metadata"] == ODD_PAIRS


@pytest.mark.parametrize("line", ["team", "{}", "[]", "{" * 5, '{"a": ' * 15_000])
def test_line_that_is_no_pair_is_rejected(browser: Browser, filled: Json, line: str) -> None:
    response = browser.post(f"{ROOT}/jobs/new", data={**filled, "metadata": line})
    assert (response.status_code, 'id="metadata-error"' in response.text) == (422, True)


@pytest.mark.parametrize(("change", "field"), [(each[0], each[2]) for each in UNFIT.values()], ids=UNFIT)
def test_what_does_not_fit_the_model_is_shown_at_its_field(
    browser: Browser, filled: Json, change: Json, field: str
) -> None:
    response = browser.post(f"{ROOT}/jobs/new", data={**filled, **forms.values_of_spec(change)})
    assert response.status_code == 422
    assert f'id="{field}-error"' in response.text


def test_unchanged_form_fits_a_model_with_a_short_context(
    browser: Browser, client: TestClient, root: Path, filled: Json, body: Json
) -> None:
    write_hollow(root / "short", max_position_embeddings=SHORT)
    job = created_job(client, browser.post(f"{ROOT}/jobs/new", data={**filled, "model": "short"}))
    assert job["spec"]["repair"]["sequence_tokens"] == SHORT
    assert job["spec"] == client.post("/jobs", json={**body, "model": "short"}).json()["spec"]
