"""The attacks. Each yields its findings: what is expected, what was seen, and whether the two agree."""

import gzip
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple
from urllib.parse import quote

import httpx2
from httpx2 import Client, Response

from api.deps import PREVIEWS
from api.unknown_callers import FAILURES
from core.access.keys import Scope
from core.models.resolver import TENANT_HUB_CALLS
from core.states import ImportState
from core.tables import Import, Job
from tests import claims
from tests.api.conftest import let_leases_end
from tests.api.receivers import DRIPS, dripping, receiving
from tests.attack.target import BOMBS, CHAT, INBOX, Costs, Target
from tests.faults.drill import unreferenced
from tests.waiting import alive

MEGABYTES, ANSWER_SECONDS, HUB_SECONDS, DELIVERY_SECONDS = 100, 1.0, 5.0, 2.0


class Finding(NamedTuple):
    """One expectation of an attack."""

    expected: str
    seen: str
    good: bool


Attack = Callable[[Target], Iterator[Finding]]


def header_bomb(target: Target) -> Iterator[Finding]:
    """Models in a folder and on the hub whose weight files claim 4 * 10**12 numbers."""
    reader = target.client("attacker", Scope.READ)
    reader.get("/models/tiny").raise_for_status()  # loads the modules that every look-up needs
    with target.costs() as costs:
        answers = [reader.get(f"/models/{prefix}{name}") for name in BOMBS for prefix in ("", "evil/")]
        page = reader.get("/models").json()
    yield _statuses("422 model_refused, for a folder and for the hub", answers, {"422 model_refused"})
    listed, skipped = ([model["id"] for model in page[name]] for name in ("data", "skipped"))
    yield Finding("only the bombs are missing in the list", f"listed {listed}", set(skipped) == set(BOMBS))
    yield _memory(costs)
    yield from _others(costs)


def huge_config(target: Target) -> Iterator[Finding]:
    """Models of the hub with a config.json of 3 GB. The liar announces a valid short one, so no more of it is read."""
    reader = target.client("attacker", Scope.READ)
    reader.get("/models/good/model").raise_for_status()
    kept = set(target.cache.rglob("*"))
    with target.costs() as costs:
        for name, result in (("evil/honest", "422 model_refused"), ("evil/liar", "200 ")):
            began = time.monotonic()
            answer = reader.get(f"/models/{name}")
            seconds = time.monotonic() - began
            yield _statuses(f"{name}: {result}", [answer], {result})
            yield _within(f"{name}: answered", seconds, HUB_SECONDS)
        with target.flood(
            [(f"/models/{name}", _key(reader)) for name in ("evil/honest", "evil/liar")] * 10
        ) as statuses:
            _wait(lambda: len(statuses) == 20, 30)
    good = len(statuses) == 20 and set(statuses) <= {200, 422, 503}
    yield Finding("20 at once: the same, or 503", str(dict(Counter(statuses))), good)
    yield _memory(costs)
    left = set(target.cache.rglob("*")) - kept
    yield Finding("nothing new in the hub cache", f"{len(left)} files", not left)
    yield from _others(costs)


def slow_hub(target: Target) -> Iterator[Finding]:
    """Requests of one tenant for a model whose hub takes seconds for every answer."""
    attacker, victim = target.client("attacker", Scope.READ), target.client("victim", Scope.READ)
    victim.get("/models/tiny").raise_for_status()
    slow = [("/models/evil/slow", _key(attacker))] * 30
    with target.costs() as costs, target.flood(slow) as statuses:
        _wait(lambda: len(statuses) >= len(slow) - TENANT_HUB_CALLS)
        began = time.monotonic()
        answer = victim.get("/models/good/model")
        seconds = time.monotonic() - began
        refused = statuses.count(503)
    expected = len(slow) - TENANT_HUB_CALLS
    yield Finding(f"503 for {expected} of {len(slow)}", f"503 for {refused}", refused == expected)
    yield _statuses("another tenant's model on the same hub: 200", [answer], {"200 "})
    yield _within("another tenant's model on the same hub", seconds, ANSWER_SECONDS)
    yield from _others(costs)


def waits(target: Target) -> Iterator[Finding]:
    """3,000 requests of one read key that wait for a job: half with `wait`, half as event streams."""
    attacker = target.client("waiter")
    spec = {"model": "tiny", "dataset": target.add_dataset(attacker), "sparsity": 0.6}
    job = attacker.post("/jobs", json=spec).raise_for_status().json()["id"]
    key, limit = _key(target.client("waiter", Scope.READ)), target.settings.key_waits
    stream = {**key, "Accept": "text/event-stream"}
    flood = [(f"/jobs/{job}?wait=60", key), (f"/jobs/{job}/events", stream)] * 1500
    with target.costs() as costs, target.flood(flood) as statuses:
        _wait(lambda: statuses.count(429) >= len(flood) - limit, 60)
        time.sleep(3)  # while the others wait
        refused = statuses.count(429)
    attacker.post(f"/jobs/{job}/cancel").raise_for_status()
    expected = len(flood) - limit
    yield Finding(f"429 for {expected}", str(dict(Counter(statuses))), refused == expected)
    yield _memory(costs)
    yield from _others(costs)


def random_keys(target: Target) -> Iterator[Finding]:
    """1,000 requests, each with another key that does not exist."""
    began = time.monotonic()
    with (
        target.costs() as costs,
        target.flood([("/jobs", {"Authorization": f"Bearer seft_{n}"}) for n in range(1000)]) as statuses,
    ):
        _wait(lambda: len(statuses) == 1000)
    # One more every fifth of a second; the requests that are already being checked when the limit is reached count too.
    burst = FAILURES + 5 * (time.monotonic() - began) + 40
    counts = Counter(statuses)
    good = counts[401] <= burst and counts[401] + counts[429] == 1000
    yield Finding(f"401 for at most {burst:.0f}, 429 for the others", str(dict(counts)), good)
    yield from _others(costs)


def preview_flood(target: Target) -> Iterator[Finding]:
    """Previews with a chat template that does not end: of four tenants, from the API and from pages."""
    flood, heads = [], []
    for number in range(4):
        client = target.client(f"crowd-{number}")
        dataset = target.add_dataset(client, CHAT)
        signed_in = client.post("/dashboard/sign-in", data={"key": client.headers["Authorization"].split()[1]})
        cookie = {"Cookie": signed_in.headers["set-cookie"].partition(";")[0]}
        heads.append((f"/datasets/{dataset}/preview?model=looping", _key(client)))
        flood += [heads[-1], (f"/dashboard/datasets/{dataset}?model=looping", cookie)] * 10
    with target.costs() as costs:
        with target.flood(flood) as statuses:
            _wait(lambda: len(target.children()) == PREVIEWS and len(statuses) >= 60)
            time.sleep(3)
            counts, children = Counter(statuses), target.children()
        ended = _wait(lambda: not any(map(alive, children)), 5)
    good = counts[503] + counts[429] == counts.total() >= 60
    yield Finding("429 or 503 for all but 18 of 80, of both kinds", str(dict(counts)), good)
    most = costs.most_children
    yield Finding(f"at most {PREVIEWS} children", f"{most}", 0 < most <= PREVIEWS)
    yield Finding("they end when the clients leave", "ended" if ended else "running", ended)
    yield from _others(costs)
    with target.flood(heads):
        _wait(target.children)
        time.sleep(2)  # until a child has read its request
        children = target.children()
        target.kill_api()
        ended = _wait(lambda: not any(map(alive, children)), 5)
    target.api.start()
    yield Finding("they end with a killed API", f"{len(children)} {'ended' if ended else 'running'}", ended)


def dripping_receivers(target: Target) -> Iterator[Finding]:
    """Twelve webhooks of one tenant whose receivers drip a head, a body or TLS, beside one healthy webhook."""
    attacker, victim, seconds = target.client("attacker"), target.client("victim"), list[float]()
    with target.costs() as costs, ExitStack() as stack, receiving() as healthy:
        for what, (scheme, head) in DRIPS.items():
            receiver = stack.enter_context(dripping(head, drips=what != "nothing"))
            for _ in range(3):
                _test_hook(attacker, f"{scheme}://127.0.0.1:{receiver.port}/")
        time.sleep(1.5)  # until their deliveries have begun
        for number in range(5):
            began = time.monotonic()
            _test_hook(victim, f"http://127.0.0.1:{healthy.server_address[1]}/")
            _wait(partial(lambda expected: len(healthy.got) == expected, number + 1))
            seconds.append(time.monotonic() - began)
    yield _within("5 healthy deliveries", max(seconds), DELIVERY_SECONDS)
    yield from _others(costs)


def priority_flood(target: Target) -> Iterator[Finding]:
    """20 jobs of one tenant with the highest priority, before three jobs of another tenant with the default."""
    for tenant, count, priority in (("attacker", 20, 100), ("victim", 3, 0)):
        client = target.client(tenant)
        spec = {"model": "tiny", "dataset": target.add_dataset(client), "sparsity": 0.6, "priority": priority}
        for _ in range(count):
            client.post("/jobs", json=spec).raise_for_status()
    tenants = []
    for _ in range(6):
        with target.sessions.begin() as session:
            attempt = claims.claim(session, "attack", 60)
            tenants.append(session.get_one(Job, attempt.job_id).tenant if attempt else "nobody")
    good = all(tenants[n : n + 2].count("victim") == 1 for n in range(0, 6, 2))
    yield Finding("of every two claims, one is the victim's", " ".join(tenants), good)


def paths_in_sources(target: Target) -> Iterator[Finding]:
    """Sources and models with `..`, empty parts or backslashes, which could lead out of an allowed place."""
    client = target.client("attacker")
    dataset = target.add_dataset(client)
    plain = client.post("/imports", json={"source": f"s3://{INBOX}/open/texts.jsonl"})
    yield _statuses("the plain source and model: accepted", [plain, client.get("/models/tiny")], {"201 ", "200 "})
    keys = ["../shut.jsonl", "a/../../shut.jsonl", "./texts.jsonl", "/texts.jsonl", "a//b", "..", "a/"]
    keys += ["..\\shut.jsonl", "a\\b", "%2e%2e\\shut.jsonl"]
    places = [f"s3://{INBOX}/open/{key}" for key in keys] + [f"s3://{INBOX}/shut.jsonl", f"s3://{INBOX}/open"]
    places += [f"hf://datasets/{name}" for name in ("a/../b", "../../a", "a/b/../c.jsonl", "a/b@../c", "a/b\\c")]
    answers = [client.post("/imports", json={"source": place}) for place in places]
    yield _statuses(f"{len(places)} sources: 422 invalid_request", answers, {"422 invalid_request"})
    secret = str(target.folder / "secret")
    models = (
        "../secret",
        "tiny/../../secret",
        "./tiny",
        "tiny/../tiny",
        "a//tiny",
        "tiny/",
        "..\\secret",
        "..",
        secret,
    )
    answers = [client.get("/models/" + quote(name, safe="").replace(".", "%2E")) for name in models]
    for name in models:
        spec = {"model": name, "dataset": dataset, "sparsity": 0.6}
        answers += [client.post("/jobs", json=spec), client.post("/jobs/estimate", json=spec)]
        answers.append(client.get(f"/datasets/{dataset}/preview", params={"model": name}))
    refusals = {"404 not_found", "422 model_not_found", "422 model_refused", "422 invalid_request"}
    yield _statuses(f"{len(models)} models in 4 operations: 404 or 422", answers, refusals)


def imports_of_a_killed_api(target: Target) -> Iterator[Finding]:
    """Imports that are together larger than a tenant may store, and an API that is killed while it checks one."""
    client, size = target.client("greedy"), 2 * target.settings.tenant_bytes // 5
    answers = [client.post("/imports", json={"name": "x", "bytes": size}) for _ in range(4)]
    yield _statuses("4 imports of 40 % of the limit: 2 accepted", answers[:2], {"201 "})
    yield _statuses("the others: 409 limit_reached", answers[2:], {"409 limit_reached"})
    for answer in answers[:2]:
        client.delete(f"/imports/{answer.json()['id']}").raise_for_status()
    lines = b"".join(b'{"text": "%09d%s"}\n' % (number, b"x" * 1000) for number in range(size // 1100))
    content = gzip.compress(lines)
    row = client.post("/imports", json={"name": "x", "bytes": len(content)}).raise_for_status().json()
    (part,) = client.get(f"/imports/{row['id']}/parts").json()["data"]
    httpx2.put(part["url"], content=content).raise_for_status()
    client.post(f"/imports/{row['id']}/complete").raise_for_status()

    def stored() -> Import:
        with target.sessions() as session:
            return session.get_one(Import, row["id"])

    _wait(lambda: stored().tries)
    target.kill_api()
    state, left = stored().state, unreferenced(target.sessions, target.storage)
    yield Finding(
        "killed during the check", f"{state}, {len(left)} objects", state == ImportState.CHECKING and bool(left)
    )
    target.api.start()
    let_leases_end(target.sessions)
    _wait(lambda: stored().state == ImportState.DONE)
    left = unreferenced(target.sessions, target.storage)
    good = stored().state == ImportState.DONE and not left
    yield Finding("after a restart: done, no object is left", f"{stored().state}, {len(left)} objects", good)


def _test_hook(client: Client, url: str) -> None:
    hook = client.post("/webhooks", json={"url": url}).raise_for_status().json()
    client.post(f"/webhooks/{hook['id']}/test").raise_for_status()


def _key(client: Client) -> dict[str, str]:
    return {"Authorization": client.headers["Authorization"]}


def _statuses(expected: str, answers: list[Response], allowed: Collection[str]) -> Finding:
    """Compare the statuses of answers, each with the code of its problem report."""
    seen = Counter(f"{answer.status_code} {code(answer)}" for answer in answers)
    return Finding(expected, str(dict(seen)), set(seen) <= set(allowed))


def code(answer: Response) -> str:
    is_problem = answer.headers.get("content-type") == "application/problem+json"
    return str(answer.json()["code"]) if is_problem else ""


def _within(what: str, seconds: float, limit: float) -> Finding:
    return Finding(f"{what} within {limit:g} s", f"{seconds:.2f} s", seconds < limit)


def _memory(costs: Costs) -> Finding:
    return Finding(
        f"the API grows by less than {MEGABYTES} MB", f"{costs.megabytes:.0f} MB", costs.megabytes < MEGABYTES
    )


def _others(costs: Costs) -> Iterator[Finding]:
    """Compare the answers that another tenant got during the attack."""
    for path, (seconds, waited) in costs.slowest.items():
        seen = f"{seconds:.2f} s; the API waited {waited:.2f} s for a processor"
        yield Finding(f"{path} of another tenant within {ANSWER_SECONDS:g} s", seen, seconds < ANSWER_SECONDS)
    if costs.failed:
        yield Finding("200 for another tenant", str(Counter(costs.failed)), good=False)


def _wait(condition: Callable[[], object], seconds: float = 20.0) -> bool:
    """Wait until the condition is true. Return whether it was true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
