"""Access control: every operation without a key, with too low a scope and from another tenant; and the audit log."""

from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import Row, select
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from core.access.keys import Scope
from core.tables import Base, Total
from tests.api.conftest import Json, NewClient, problem
from tests.api.walk import Operation, World, make_world, operations

PUBLIC = {"livez", "readyz", "version"}
ADMINISTRATIVE = {
    "create_key",
    "list_keys",
    "revoke_key",
    "list_audit",
    "put_hub_token",
    "delete_hub_token",
}
OPERATIONAL = {"get_metrics"}
"""Operations of the operator, which need a key of scope `metrics`."""
SHARED = {"get_model"}
"""Operations on resources that all tenants share: local models."""
SINGLE = {"get_hub_token"}
"""Operations on a resource of which a tenant has one or none."""
READ_ONLY = {"estimate_job"}
"""POST operations that change nothing."""

pytestmark = pytest.mark.usefixtures("known_hub")


@pytest.fixture
def walk(app: FastAPI) -> list[Operation]:
    return operations(app)


@pytest.fixture
def world(client: TestClient) -> World:
    return make_world(client)


def test_no_operation_is_open_without_a_key(app: FastAPI, walk: list[Operation], world: World) -> None:
    assert {operation.name for operation in walk if not operation.guarded} == PUBLIC
    for operation in walk:
        for value in ("", "Bearer seft_wrong", "Basic YTpi"):
            answer = operation.send(TestClient(app, headers={"Authorization": value}), world)
            if operation.guarded:
                problem(answer, 401, "unauthenticated")
                assert answer.headers["www-authenticate"] == "Bearer"
            else:
                assert answer.status_code == 200


def test_a_key_does_what_its_scope_allows_and_no_more(
    client: TestClient, new_client: NewClient, walk: list[Operation]
) -> None:
    for scope in (Scope.METRICS, Scope.READ, Scope.WRITE):
        weak, world = new_client("ours", scope), make_world(client)
        for operation in filter(lambda operation: operation.guarded, walk):
            answer = operation.send(weak, world)
            if forbidden(operation, scope):
                report = problem(answer, 403, "forbidden")
                assert f"Your key has the scope {scope}" in report["detail"]
            else:
                assert answer.status_code < 400, (operation.name, answer.text)
                world = world if operation.method == "GET" else make_world(client)


def forbidden(operation: Operation, scope: Scope) -> bool:
    if scope is Scope.METRICS or operation.name in OPERATIONAL:
        return (scope is Scope.METRICS) != (operation.name in OPERATIONAL)
    return operation.name in ADMINISTRATIVE or (scope is Scope.READ and operation.method != "GET")


def test_a_stranger_sees_and_touches_nothing(
    new_client: NewClient, walk: list[Operation], world: World, sessions: sessionmaker[Session]
) -> None:
    stranger, before = new_client("theirs"), rows_but_of(sessions, "theirs")
    for operation in filter(lambda operation: operation.guarded and operation.name not in OPERATIONAL, walk):
        answer = operation.send(stranger, world)
        if operation.name in SHARED:
            assert answer.status_code == 200
        elif "{" in operation.path or operation.name in SINGLE:
            problem(answer, 404, "not_found")
        elif answer.status_code < 400:
            assert not [thing for name, thing in world.items() if name != "model_id" and thing in answer.text], (
                operation.name
            )
        else:
            assert problem(answer, 422, "invalid_request")["param"] == "dataset", operation.name
    assert rows_but_of(sessions, "theirs") == before


def test_every_change_is_audited_and_nothing_else(
    client: TestClient, new_client: NewClient, walk: list[Operation], sessions: sessionmaker[Session]
) -> None:
    world = make_world(client)
    for operation in filter(lambda operation: operation.guarded and operation.name not in OPERATIONAL, walk):
        (last,) = audited(client, 1)
        answer = operation.send(client, world)
        assert answer.status_code < 400, (operation.name, answer.text)
        entry, before = audited(client, 2)
        if operation.method == "GET" or operation.name in READ_ONLY:
            assert entry == last, operation.name
            continue
        assert before == last
        assert (entry["action"], entry["request_id"]) == (operation.name, answer.headers["x-request-id"])
        assert entry["target"] == answer.json()["id"]
        assert entry["key_id"] in {key["id"] for key in client.get("/keys", params={"limit": 100}).json()["data"]}
        world = make_world(client)


def test_a_request_that_changed_nothing_is_not_audited(client: TestClient, world: World) -> None:
    (last,) = audited(client, 1)
    body = {"model": "tiny", "dataset": world["dataset_id"], "sparsity": 0.5}
    client.post("/jobs", json=body | {"sparsity": 2})
    client.post("/jobs/nothing/cancel")
    client.delete(f"/keys/key_{'0' * 26}")
    assert audited(client, 1) == [last]
    for _ in range(2):
        client.post("/jobs", json=body, headers={"Idempotency-Key": "k"})
    assert [entry["action"] for entry in audited(client, 2)] == ["create_job", "create_import"]


def test_the_audit_is_paged_newest_first(client: TestClient, world: World) -> None:
    page = client.get("/audit", params={"limit": 4}).json()
    rest = client.get("/audit", params={"after": page["data"][-1]["id"]}).json()
    actions = [entry["action"] for entry in page["data"] + rest["data"]]
    assert (actions, page["has_more"], rest["has_more"]) == (
        [
            "create_import",
            "create_webhook",
            "create_key",
            "cancel_job",
            "create_job",
            "create_job",
            "create_dataset",
            "create_dataset",
            "put_hub_token",
        ],
        True,
        False,
    )


def audited(client: TestClient, limit: int) -> list[Json]:
    data: list[Json] = client.get("/audit", params={"limit": limit}).json()["data"]
    return data


def rows_but_of(sessions: sessionmaker[Session], tenant: str) -> dict[str, list[Row[Any]]]:
    """Return all rows except this tenant's own, and except sums over all tenants."""
    with sessions.begin() as session:
        return {
            table.name: list(
                session.execute(
                    select(table)
                    .where(*([table.c.tenant != tenant] if "tenant" in table.c else []))
                    .order_by(*table.primary_key.columns)
                )
            )
            for table in Base.metadata.sorted_tables
            if table is not Total.__table__
        }
