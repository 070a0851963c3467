"""The page of models, the look-up of a model, and the suggestions in forms."""

import json
import re
from pathlib import Path

import pytest
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from api.dashboard.formatting import count
from core import workers
from core.access.keys import Scope
from core.capability import CPU, Capability
from core.errors import Code, ProblemError
from tests.api.conftest import Json
from tests.api.dashboard.conftest import ROOT, Browser, NewBrowser, visible
from tests.api.dashboard.test_new_job import fields_of
from tests.hollow import write_hollow
from tests.hub import Repo, hub, use_hub

EVIL = "<b>&'x"
DASH = "\N{EN DASH}"


def rows_of(page: str) -> list[str]:
    """Return the rows of the list as text."""
    return [" ".join(visible(row).split()) for row in re.findall(r"<tr><td.*?</tr>", page, re.DOTALL)]


def test_models_are_listed_with_their_details_and_a_result_links_to_its_job(
    browser: Browser, new_browser: NewBrowser, root: Path, result: str, sessions: sessionmaker[Session]
) -> None:
    write_hollow(root / "deep" / EVIL)
    with sessions.begin() as session:
        for name, memory in (("small:1:a", 1 << 20), ("large:1:a", 1 << 40), ("large:2:b", 1 << 40)):
            workers.record_heartbeat(session, name, Capability(CPU, "x86_64", memory, 1 << 40))
    page = browser.show("/models")
    details = "llama 197 k 172 k 16 384"
    assert rows_of(page) == [
        f"deep/{EVIL} local {details} {DASH} large New job",
        f"tiny local {details} {DASH} large New job",
        f"tiny result · {result} {details} mit large Job New job",
    ]
    assert f'href="{ROOT}/jobs/{result}"' in page
    assert f'href="{ROOT}/jobs/new?model=tiny"' in page
    assert 'aria-current="page"' in page[page.index('href="/dashboard/models"') :][:60]
    stranger = new_browser("theirs", Scope.READ).show("/models")
    assert result not in stranger
    assert "/jobs/new?model" not in stranger


def test_a_model_that_cannot_be_used_is_named_with_its_reason_and_hides_no_other(browser: Browser, root: Path) -> None:
    odd = write_hollow(root / EVIL) / "config.json"
    odd.write_text(json.dumps({"architectures": ["x\ud800ForCausalLM"]}))
    page = browser.show("/models")
    assert [row.partition(" ")[0] for row in rows_of(page)] == ["tiny"]
    text = " ".join(visible(page).split())
    assert f"Skipped models that cannot be used {EVIL} no text in config.json of" in text


def test_paging_lists_every_model_once(
    browser: Browser, root: Path, result: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.dashboard.pages.models.LIMIT", 2)
    names = [write_hollow(root / f"model-{number}").name for number in range(2)]
    first = browser.show("/models")
    assert [row.partition(" ")[0] for row in rows_of(first)] == names
    link = re.search(r'href="/dashboard(/models\?after=[^"]+)">Next', first)
    assert link
    last = browser.show(link[1])
    assert re.findall(r'/models\?model=([^"]+)"><b', last) == ["tiny", result]
    assert ">Next" not in last


def test_hub_model_is_looked_up_and_prefilled_in_a_new_job(
    browser: Browser, client: TestClient, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub({"owner/name": Repo(write_hollow(tmp_path / "repo"))}) as endpoint:
        use_hub(monkeypatch, endpoint, tmp_path / "cache")
        page = browser.show("/models?model=+owner/name&revision=main")
        model: Json = client.get("/models/owner/name").json()
    assert rows_of(page) == rows_of(browser.show("/models"))
    text = " ".join(visible(page).split())
    assert f"Parameters {' '.join(count(model['parameters']).split())} Target weights" in text
    assert "Licence apache-2.0 Fits on no connected worker" in text
    link = re.search(r'href="/dashboard(/jobs/new\?model=owner/name[^"]+)"', page)
    assert link
    form = fields_of(browser.show(link[1].replace("&amp;", "&")))
    assert (form["model"], form["revision"]) == ("owner/name", "main")


@pytest.mark.parametrize(
    ("query", "field", "expected"),
    [
        ("model=nothing", "model", "must be a local model or a hub id"),
        ("model=../tiny", "model", "relative to a folder"),
        ("model=%00", "model", "must be valid text without NUL"),
        ("model=tiny&revision=main", "revision", "must not be set"),
    ],
)
def test_error_is_shown_at_its_field(browser: Browser, root: Path, query: str, field: str, expected: str) -> None:
    response = browser.get(f"{ROOT}/models?{query}")
    assert response.status_code == 422
    error = re.search(rf'<p class="field-error" id="{field}-error">(.*?)</p>', response.text)
    assert error
    assert expected in visible(error[1])
    assert re.search(rf'<input id="{field}"[^>]* aria-invalid="true" aria-describedby="{field}-error"', response.text)
    assert len(rows_of(response.text)) == 1


def test_error_that_belongs_to_no_field_is_shown(browser: Browser, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ProblemError(Code.UNAVAILABLE, "The disk of the models does not answer.")

    monkeypatch.setattr("api.usecases.models.get", fail)
    response = browser.get(f"{ROOT}/models?model=tiny")
    assert response.status_code == 503
    assert "The disk of the models does not answer." in visible(response.text)


def test_model_fields_suggest_available_models(browser: Browser, root: Path, result: str, dataset: str) -> None:
    write_hollow(root / "deep" / EVIL)
    for path in ("/jobs/new", f"/datasets/{dataset}"):
        page = browser.show(path)
        options = re.findall(r'<option value="([^"]*)"(?: label="([^"]*)")?></option>', page)
        assert options == [("tiny", ""), ("deep/&lt;b&gt;&amp;&#39;x", ""), (result, "tiny")], path
