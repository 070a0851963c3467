"""The address and the key come from arguments, the environment or the file of `seft login`."""

import stat
from pathlib import Path

import pytest

from seft.client import Client
from seft.client.config import Address, config_file
from seft.client.errors import ClientError, SetupError

SAVED = Address("https://seft.example", "seft_saved")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("SEFT_URL", "SEFT_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_only_the_owner_can_read_the_file(home: Path) -> None:
    Address("https://former.example", "seft_former").save()
    path = SAVED.save()
    assert path == home / "seft" / "config.json" == config_file()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert Address.resolve() == SAVED


def test_arguments_override_the_environment_which_overrides_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    SAVED.save()
    monkeypatch.setenv("SEFT_API_KEY", "seft_env")
    assert Address.resolve() == Address(SAVED.url, "seft_env")
    monkeypatch.setenv("SEFT_URL", "http://127.0.0.1:1/")
    assert Address.resolve() == Address("http://127.0.0.1:1", "seft_env")
    with Client("http://127.0.0.1:2", "seft_argument") as client:
        assert client.url == "http://127.0.0.1:2"


def test_the_saved_key_is_sent_to_no_other_address(monkeypatch: pytest.MonkeyPatch) -> None:
    SAVED.save()
    monkeypatch.setenv("SEFT_URL", f"{SAVED.url}/")
    assert Address.resolve() == SAVED
    monkeypatch.setenv("SEFT_URL", "https://other.example")
    with pytest.raises(ClientError, match=r"not for https://other\.example"):
        Address.resolve()


def test_an_error_says_what_is_missing_or_wrong_and_the_way_out(home: Path) -> None:
    with pytest.raises(ClientError, match=r"SEFT_URL is not set\. Run `seft login`"):
        Address.resolve()
    with pytest.raises(ClientError, match="SEFT_API_KEY is not set"):
        Address.resolve("http://127.0.0.1:1")
    with pytest.raises(ClientError, match="must begin with http"):
        Address.resolve("localhost:8000", "seft_x")
    for wrong in (
        "http://localhost:80x",
        "http://[::1",
        "http://a..b",
        "http://",
        "http:///a",
        "http://x y",
        "http://x:99999",
    ):
        with pytest.raises(SetupError, match="must be a valid URL") as caught:
            Address.resolve(wrong, "seft_x")
        assert repr(wrong) in str(caught.value)
    SAVED.save().write_text("{")
    with pytest.raises(ClientError, match="Run `seft login` again"):
        Address.resolve()


@pytest.mark.parametrize(
    "wrong",
    [
        "me:secret@a",
        "http://me:secret@a",
        "https://secret@a:1/x",
        "http://a/?secret",
        "http://a?secret",
        "http://a/#secret",
    ],
)
def test_an_address_with_more_than_host_and_path_is_rejected_and_not_shown(wrong: str) -> None:
    with pytest.raises(SetupError, match="must not have a user name, a password, a query or a fragment") as caught:
        Address.resolve(wrong, "seft_x")
    assert "secret" not in str(caught.value)


def test_the_scheme_of_an_address_may_be_in_capitals() -> None:
    assert Address.resolve("HTTPS://seft.example/", "seft_x").url == "https://seft.example"


def test_an_empty_argument_is_not_replaced_but_an_empty_variable_is(monkeypatch: pytest.MonkeyPatch) -> None:
    SAVED.save()
    with pytest.raises(SetupError, match="The API key must not be empty"):
        Address.resolve(SAVED.url, "")
    with pytest.raises(SetupError, match=r"must begin with http.* it is ''"):
        Address.resolve("", "seft_x")
    for name in ("SEFT_URL", "SEFT_API_KEY"):
        monkeypatch.setenv(name, "")
    assert Address.resolve() == SAVED


@pytest.mark.parametrize("end", ["ü", " ", "\n"])
def test_a_key_that_no_header_can_have_is_rejected_and_not_shown(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setenv("SEFT_API_KEY", f"seft_secret{end}")
    with pytest.raises(SetupError, match=r"\(SEFT_API_KEY\) must only have visible ASCII .* character 12 is") as caught:
        Client("http://127.0.0.1:1")
    assert "secret" not in str(caught.value)
