"""Which errors of the database are waited for."""

import time

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.orm import Session

from tests.worker.conftest import Backend
from worker.attempt_writer import AttemptWriter


def test_a_transaction_that_the_server_ended_is_tried_again(backend: Backend, job_id: str) -> None:
    writer, pauses = AttemptWriter(backend.sessions, backend.claim(), backend.settings), [0.5, 0.0]

    def change(session: Session) -> str:
        session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '100ms'"))
        time.sleep(pauses.pop(0))
        return str(session.scalars(text("SELECT 'done'")).one())

    assert writer.write(change) == "done"
    assert not pauses


def test_a_wrong_statement_is_not_tried_again(backend: Backend, job_id: str) -> None:
    writer = AttemptWriter(backend.sessions, backend.claim(), backend.settings)
    with pytest.raises(ProgrammingError) as caught:
        writer.write(lambda session: session.execute(text("SELECT nothing")))
    assert isinstance(caught.value, DBAPIError)
