"""Fixtures: a database with a dataset of one tenant, and jobs that use it."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.orm import Session, sessionmaker

from core import ids
from core.capability import Capability
from core.datasets import datasets
from core.errors import Code, ProblemError
from core.infra.database import make_engine, make_sessions
from core.infra.storage import Storage
from core.jobs import jobs
from core.settings import Settings
from core.specs import Dtype, JobSpec
from seft.data.records import Format

Sessions = sessionmaker[Session]
MakeJob = Callable[..., str]
AddDataset = Callable[..., str]
GPU = Capability("cuda", "NVIDIA H100 80GB HBM3", 80 << 30, 500 << 30, bfloat16=True)
FLOPS = {Dtype.FLOAT32: 1e12, Dtype.BFLOAT16: 4e12}
"""Operations per second of `GPU` in these tests."""


@pytest.fixture
def sessions(settings: Settings) -> Iterator[Sessions]:
    engine = make_engine(settings)
    yield make_sessions(engine)
    engine.dispose()


@pytest.fixture
def spec(sessions: Sessions) -> JobSpec:
    with sessions.begin() as session:
        row = datasets.add(session, "ours", "texts.jsonl", datasets.Content("0" * 64, 4096, 2, Format.TEXT))
    return JobSpec(model="tiny", dataset=row.id, sparsity=0.6, dtype=Dtype.FLOAT32)


@pytest.fixture
def add_dataset(sessions: Sessions) -> AddDataset:
    """Return a function that adds a dataset, whose records differ from those of the others, and returns its id."""

    def add(size: int = 30, form: Format = Format.TEXT, *, tenant: str = "ours", sha256: str = "") -> str:
        content = datasets.Content(sha256 or ids.new("file"), size, 2, form)
        with sessions.begin() as session:
            return datasets.add(session, tenant, "other.jsonl", content).id

    return add


@pytest.fixture
def retaining(spec: JobSpec, add_dataset: AddDataset) -> JobSpec:
    """A request whose job retains a second dataset."""
    return retain(spec, add_dataset(1 << 20))


def retain(spec: JobSpec, dataset_id: str) -> JobSpec:
    """Return the request with this dataset to retain."""
    return JobSpec.model_validate(
        {**spec.model_dump(mode="json"), "repair": {"retain": "dataset", "retain_dataset": dataset_id}}
    )


def evaluate_on(spec: JobSpec, dataset_id: str) -> JobSpec:
    """Return the request with this dataset to evaluate on."""
    return JobSpec.model_validate({**spec.model_dump(mode="json"), "evaluate": {"dataset": dataset_id}})


@pytest.fixture
def make_job(sessions: Sessions, spec: JobSpec) -> MakeJob:
    def make(priority: int = 0, **fields: Any) -> str:
        request = spec.model_copy(update={"priority": priority, **fields})
        with sessions.begin() as session:
            return jobs.create(session, "ours", request, None, request.fingerprint()).id

    return make


@pytest.fixture
def storage(settings: Settings) -> Storage:
    storage = Storage(settings)
    storage.ensure_bucket()
    return storage


def accepted(sessions: Sessions, action: Callable[[Session, int], object], count: int = 4) -> int:
    """Run an action in several transactions at once, with a number each. Return how many exceeded no limit.

    Each transaction ends a while after its action, so that the others look before they can see what it wrote.
    """
    start = threading.Barrier(count)

    def run(number: int) -> bool:
        start.wait()
        try:
            with sessions.begin() as session:
                action(session, number)
                time.sleep(0.1)
        except ProblemError as error:
            if error.code in {Code.LIMIT_REACHED, Code.RATE_LIMITED}:
                return False
            raise
        return True

    with ThreadPoolExecutor(count) as pool:
        return sum(pool.map(run, range(count)))


def has_waiting_transaction(sessions: Sessions) -> bool:
    """Return whether a transaction waits until another one ends."""
    with sessions.begin() as session:
        return bool(session.scalar(text("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")))


@contextmanager
def plans(session: Session, option: str = "COSTS") -> Iterator[list[str]]:
    """Collect how Postgres runs the queries of the `with` block. With the option ANALYZE it also counts the rows."""
    found = list[str]()

    def explain(connection: Connection, _: object, statement: str, parameters: Any, *__: object) -> None:
        if statement.startswith("SELECT"):
            rows = connection.exec_driver_sql(f"EXPLAIN ({option}) {statement}", parameters)
            found.append("\n".join(rows.scalars()))

    event.listen(connection := session.connection(), "before_cursor_execute", explain)
    try:
        yield found
    finally:
        event.remove(connection, "before_cursor_execute", explain)
