"""API keys: the secret is shown once and stored only as a hash."""

from datetime import timedelta

from sqlalchemy import func, select, text, update

from core.access import keys
from core.access.keys import Scope
from core.tables import ApiKey
from tests.core.conftest import Sessions


def test_an_issued_key_is_verified_and_its_secret_is_not_stored(sessions: Sessions) -> None:
    with sessions.begin() as session:
        row, secret = keys.issue(session, "ours", "laptop", Scope.READ)
    assert secret.startswith("seft_")
    assert secret not in str(vars(row))
    with sessions.begin() as session:
        verified = keys.verify(session, secret)
        assert verified is not None
        assert (verified.id, verified.tenant) == (row.id, "ours")


def test_wrong_and_revoked_keys_are_rejected(sessions: Sessions) -> None:
    with sessions.begin() as session:
        row, secret = keys.issue(session, "ours", "laptop", Scope.READ)
        for wrong in ("", "seft_", secret[:-1], secret.upper(), row.sha256, "\0", "\ud800"):
            assert keys.verify(session, wrong) is None
        row.revoked_at = session.scalar(select(func.now()))
        session.flush()
        assert keys.verify(session, secret) is None
        assert session.scalar(select(func.count()).select_from(ApiKey)) == 1


def test_last_use_is_recorded_at_most_once_per_minute(sessions: Sessions) -> None:
    with sessions.begin() as session:
        row, secret = keys.issue(session, "ours", "laptop", Scope.READ)
    assert row.last_used_at is None
    times = set()
    for _ in range(3):
        with sessions.begin() as session:
            keys.verify(session, secret)
            times.add(session.scalar(select(ApiKey.last_used_at)))
    assert len(times) == 1
    assert None not in times
    with sessions.begin() as session:
        session.execute(update(ApiKey).values(last_used_at=func.now() - timedelta(seconds=61)))
    with sessions.begin() as session:
        keys.verify(session, secret)
        assert session.scalar(select(ApiKey.last_used_at > func.now() - timedelta(seconds=60)))


def test_a_key_can_be_used_while_its_row_is_locked(sessions: Sessions) -> None:
    with sessions.begin() as session:
        row, secret = keys.issue(session, "ours", "laptop", Scope.READ)
    with sessions.begin() as holder, sessions.begin() as session:
        holder.execute(select(ApiKey).where(ApiKey.id == row.id).with_for_update())
        session.execute(text("SET LOCAL lock_timeout = '2s'"))
        assert keys.verify(session, secret) is not None


def test_scopes_include_each_other() -> None:
    allowed = {mine: {needed for needed in Scope if mine.allows(needed)} for mine in Scope}
    assert allowed == {
        Scope.METRICS: {Scope.METRICS},
        Scope.READ: {Scope.READ},
        Scope.WRITE: {Scope.READ, Scope.WRITE},
        Scope.ADMIN: {Scope.READ, Scope.WRITE, Scope.ADMIN},
    }
