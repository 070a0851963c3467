"""The hub token on the page of keys: it is stored, replaced, deleted and never shown."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.dashboard.conftest import Browser
from tests.hub import hub, use_hub

FIRST, SECOND = "hf_first", "hf_second"


@pytest.fixture
def accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that knows two tokens."""
    with hub({}, {FIRST: "acme", SECOND: "acme-research"}) as endpoint:
        use_hub(monkeypatch, endpoint, tmp_path / "cache")
        yield


@pytest.mark.usefixtures("accounts")
def test_a_token_is_stored_replaced_and_deleted(browser: Browser) -> None:
    for token, owner in ((FIRST, "acme"), (SECOND, "acme-research")):
        assert browser.submit("/keys/hub-token", {"token": f"{token} "}).headers["location"].endswith("/keys")
        page = browser.show("/keys")
        assert f"Token of <b>{owner}</b>" in page
        assert token not in page
    assert browser.submit("/keys/hub-token/delete").status_code == 303
    page = browser.show("/keys")
    assert "Token of" not in page
    assert page.count("put hub token") == 2
    assert page.count("delete hub token") == 1
    assert browser.submit("/keys/hub-token/delete").status_code == 404, "it is deleted already"


@pytest.mark.usefixtures("accounts")
@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("", "at least 1 character"),
        ("hf_a b", "printable ASCII"),
        ("hf_unknown", "The hub rejected this token"),
        ("seft_key", "not an API key of this service"),
    ],
)
def test_a_token_that_cannot_be_used_is_refused_and_not_shown(browser: Browser, token: str, reason: str) -> None:
    refused = browser.submit("/keys/hub-token", {"token": token})
    assert refused.status_code == 422
    assert reason in refused.text
    assert not token or token not in refused.text
    assert "Token of" not in browser.show("/keys")
