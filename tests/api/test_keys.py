"""API keys over HTTP: create, list, revoke, rate limit."""

import re
from collections.abc import Iterator

import pytest
import redis
from fastapi import FastAPI
from starlette.testclient import TestClient
from typer.testing import CliRunner

from api.__main__ import cli
from api.app import make_app
from core.access import rates
from core.settings import Settings
from tests.api.conftest import NewClient, problem
from tests.worker.conftest import variables


def test_a_new_key_opens_the_api_and_shows_its_secret_once(app: FastAPI, client: TestClient) -> None:
    answer = client.post("/keys", json={"name": "nightly", "scope": "read"})
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
    key = answer.json()
    secret = key.pop("secret")
    assert key["last_used_at"] is None
    assert TestClient(app).get("/jobs", headers={"Authorization": f"Bearer {secret}"}).status_code == 200
    listed = client.get("/keys")
    assert secret not in listed.text
    newest = listed.json()["data"][0]
    assert newest.pop("last_used_at") is not None
    assert newest == {name: value for name, value in key.items() if name != "last_used_at"}


def test_a_revoked_key_is_rejected_at_once(app: FastAPI, client: TestClient) -> None:
    key = client.post("/keys", json={"name": "lost"}).json()
    with TestClient(app, headers={"Authorization": f"Bearer {key['secret']}"}) as holder:
        assert holder.get("/jobs").status_code == 200
        first, again = (client.delete(f"/keys/{key['id']}") for _ in range(2))
        assert first.json() == again.json()
        assert first.json()["revoked_at"]
        problem(holder.get("/jobs"), 401, "unauthenticated")


def test_no_tenant_locks_itself_out(client: TestClient) -> None:
    (own,) = client.get("/keys").json()["data"]
    problem(client.delete(f"/keys/{own['id']}"), 409, "conflict")
    assert client.get("/keys").status_code == 200


def test_keys_are_paged_newest_first(client: TestClient) -> None:
    key_ids = [client.post("/keys", json={"name": name}).json()["id"] for name in ("a", "b", "c")]
    page = client.get("/keys", params={"limit": 2}).json()
    assert ([key["id"] for key in page["data"]], page["has_more"]) == (key_ids[:0:-1], True)
    rest = client.get("/keys", params={"after": key_ids[1]}).json()
    assert (rest["data"][0]["id"], len(rest["data"]), rest["has_more"]) == (key_ids[0], 2, False)


def test_no_tenant_can_read_the_metrics_of_all_or_create_a_key_for_them(client: TestClient) -> None:
    problem(client.get("/metrics"), 403, "forbidden")
    report = problem(client.post("/keys", json={"name": "a", "scope": "metrics"}), 422, "invalid_request")
    assert report["param"] == "scope"
    assert "The operator creates keys of scope `metrics`" in report["errors"][0]["way_out"]
    (own,) = client.get("/keys").json()["data"]
    assert own["scope"] == "admin"


def test_the_refusal_to_read_the_metrics_names_the_command_that_creates_a_key_for_them(
    client: TestClient, settings: Settings
) -> None:
    detail = problem(client.get("/metrics"), 403, "forbidden")["detail"]
    command = re.search(r"The operator can create one with `python -m api (.*)`", detail)
    assert command
    printed = CliRunner().invoke(cli, command[1].split(), env=variables(settings))
    assert printed.exit_code == 0, printed.output
    headers = {"Authorization": f"Bearer {printed.stdout.strip()}"}
    assert client.get("/metrics", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [({}, "name"), ({"name": ""}, "name"), ({"name": "a\0"}, "name"), ({"name": "a", "scope": "all"}, "scope")],
)
def test_a_wrong_field_of_a_key_is_named(body: dict[str, str], param: str, client: TestClient) -> None:
    assert problem(client.post("/keys", json=body), 422, "invalid_request")["param"] == param


def test_the_error_of_an_unknown_field_lists_the_fields_of_keys(client: TestClient) -> None:
    (flaw,) = problem(client.post("/keys", json={"name": "a", "scop": "read"}), 422, "invalid_request")["errors"]
    assert (flaw["param"], flaw["way_out"]) == ("scop", "Did you mean 'scope'? Known fields: name, scope.")


@pytest.fixture
def slow(app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A client of a server that allows a key twenty requests at once, then one in 100 seconds."""
    monkeypatch.setattr(rates, "BURST_SECONDS", 2000.0)
    limited = make_app(app.state.services.settings.model_copy(update={"rate_limit": 0.01}))
    with TestClient(limited, headers=dict(client.headers)) as connected:
        yield connected


def test_a_key_over_its_rate_limit_gets_429_until_the_time_in_retry_after_has_passed(
    slow: TestClient, new_client: NewClient, settings: Settings
) -> None:
    def let_pass(seconds: float) -> None:
        with redis.Redis.from_url(str(settings.broker_url)) as server:
            server.incrbyfloat(counter, -seconds)

    assert [slow.get("/jobs").status_code for _ in range(20)] == [200] * 20
    answer = slow.get("/jobs")
    assert "0.01 requests per second" in problem(answer, 429, "rate_limited")["detail"]
    with redis.Redis.from_url(str(settings.broker_url)) as server:
        (counter,) = server.keys("seft:rate:*")
    other = {"Authorization": new_client("ours").headers["Authorization"]}
    assert slow.get("/jobs", headers=other).status_code == 200
    wait = int(answer.headers["retry-after"])
    assert 0 < wait <= 100
    let_pass(wait / 2)
    problem(slow.get("/jobs"), 429, "rate_limited")
    let_pass(wait / 2)
    assert slow.get("/jobs").status_code == 200


def test_a_clock_that_is_set_back_limits_no_key_for_longer_than_one_request_takes(
    slow: TestClient, settings: Settings
) -> None:
    assert slow.get("/jobs").status_code == 200
    with redis.Redis.from_url(str(settings.broker_url)) as server:
        (counter,) = server.keys("seft:rate:*")
        server.incrbyfloat(counter, 6000)  # as if the clock had been 6,000 s ahead when the request was counted
        answer = slow.get("/jobs")
        problem(answer, 429, "rate_limited")
        wait = int(answer.headers["retry-after"])
        assert wait <= 100
        server.incrbyfloat(counter, -wait)
    assert slow.get("/jobs").status_code == 200
    problem(slow.get("/jobs"), 429, "rate_limited")


def test_there_is_no_rate_limit_while_the_counters_are_unreachable(settings: Settings, client: TestClient) -> None:
    lost = make_app(settings.model_copy(update={"rate_limit": 0.1, "broker_url": "redis://127.0.0.1:9/0"}))
    with TestClient(lost, headers=dict(client.headers)) as connected:
        assert {connected.get("/jobs").status_code for _ in range(5)} == {200}
