"""Stored tokens for the model hub: they are bound to their tenant, and can be encrypted with a new key."""

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker
from typer.testing import CliRunner

from api.__main__ import cli
from core.access import hub_tokens
from core.access.encryption import PREFIX, Encryption
from core.access.hub_tokens import HubTokens
from core.errors import ProblemError
from core.settings import Settings
from core.tables import HubToken
from tests.worker.conftest import variables

Sessions = sessionmaker[Session]
OLD, NEW = "k" * 32, "l" * 32


def tokens(settings: Settings, key: str, sessions: Sessions) -> HubTokens:
    return HubTokens(Encryption(settings.model_copy(update={"secret_key": SecretStr(key)})), sessions)


@pytest.fixture
def sealed(settings: Settings, sessions: Sessions) -> dict[str, str]:
    """The tokens of two tenants, encrypted with the key `OLD`."""
    encryption = Encryption(settings.model_copy(update={"secret_key": SecretStr(OLD)}))
    with sessions.begin() as session:
        for tenant in ("ours", "theirs"):
            hub_tokens.put(session, tenant, encryption.encrypt(f"hf_{tenant}", tenant), "acme")
    with sessions.begin() as session:
        return {row.tenant: row.sealed for row in session.scalars(select(HubToken))}


def test_a_token_copied_to_another_tenant_opens_nothing(
    settings: Settings, sessions: Sessions, sealed: dict[str, str]
) -> None:
    with sessions.begin() as session:
        session.execute(update(HubToken).where(HubToken.tenant == "theirs").values(sealed=sealed["ours"]))
    stored = tokens(settings, OLD, sessions)
    assert stored.get("ours") == "hf_ours"
    with pytest.raises(ProblemError, match="cannot be decrypted"):
        stored.get("theirs")


def test_the_command_encrypts_all_tokens_with_the_new_key(
    settings: Settings, sessions: Sessions, sealed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables(settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SEFT_SECRET_KEY", NEW)
    command = ["hub-tokens", "encrypt"]
    failed = CliRunner().invoke(cli, command)
    assert (failed.exit_code, "ours, theirs" in failed.output) == (1, True), failed.output
    monkeypatch.setenv("SEFT_OLD_SECRET_KEYS", f'["{OLD}"]')
    assert CliRunner().invoke(cli, command).output == "2 hub tokens encrypted\n"
    stored = tokens(settings, NEW, sessions)
    assert [stored.get("ours"), stored.get("theirs")] == ["hf_ours", "hf_theirs"]


def test_a_damaged_token_is_named_and_the_others_are_encrypted(
    settings: Settings, sessions: Sessions, sealed: dict[str, str]
) -> None:
    damaged = [sealed["ours"][:-3], PREFIX + "%", "gAAAA", PREFIX]
    both = settings.model_copy(update={"secret_key": SecretStr(NEW), "old_secret_keys": (SecretStr(OLD),)})
    for text in damaged:
        with sessions.begin() as session:
            session.execute(update(HubToken).where(HubToken.tenant == "ours").values(sealed=text))
        with sessions.begin() as session:
            assert hub_tokens.encrypt_again(session, Encryption(both)) == (1, ["ours"]), text
    assert tokens(settings, NEW, sessions).get("theirs") == "hf_theirs"
