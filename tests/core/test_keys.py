"""API keys: shown once, kept as a hash."""

from sqlalchemy import func, select

from core import keys
from core.tables import ApiKey
from tests.core.conftest import Sessions


def test_an_issued_key_is_verified_and_kept_nowhere(sessions: Sessions) -> None:
    with sessions.begin() as session:
        row, secret = keys.issue(session, "ours", "laptop")
    assert secret.startswith("seft_")
    assert secret not in str(vars(row))
    with sessions.begin() as session:
        found = keys.verify(session, secret)
        assert found is not None
        assert (found.id, found.tenant) == (row.id, "ours")


def test_wrong_and_revoked_keys_are_nobodys(sessions: Sessions) -> None:
    with sessions.begin() as session:
        row, secret = keys.issue(session, "ours", "laptop")
        for wrong in ("", "seft_", secret[:-1], secret.upper(), row.sha256, "\0", "\ud800"):
            assert keys.verify(session, wrong) is None
        row.revoked_at = session.scalar(select(func.now()))
        session.flush()
        assert keys.verify(session, secret) is None
        assert session.scalar(select(func.count()).select_from(ApiKey)) == 1
