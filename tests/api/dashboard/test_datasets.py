"""The page of a dataset deletes it, and says why it cannot."""

from starlette.testclient import TestClient

from core.access.keys import Scope
from tests.api.dashboard.conftest import ROOT, Browser, NewBrowser, visible


def test_dataset_is_deleted_after_a_confirmation_unless_a_job_uses_it(
    browser: Browser, new_browser: NewBrowser, client: TestClient, dataset: str, job_id: str
) -> None:
    path = f"/datasets/{dataset}"
    assert "Delete permanently" in browser.show(path)
    assert "Delete permanently" not in new_browser(scope=Scope.READ).show(path)
    assert new_browser("theirs").submit(f"{path}/delete").status_code == 404
    refused = browser.submit(f"{path}/delete")
    assert refused.status_code == 409
    assert f"{job_id} uses this dataset and has not ended." in visible(refused.text)
    assert client.get(path).status_code == 200
    client.post(f"/jobs/{job_id}/cancel")
    assert browser.submit(f"{path}/delete").headers["location"] == f"{ROOT}/datasets"
    assert client.get(path).status_code == 404
    assert client.get("/audit").json()["data"][0]["action"] == "delete_dataset"
