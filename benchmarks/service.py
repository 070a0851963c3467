"""How fast is the service at 200 job creations per second, and with a million jobs in its lists and reports?

    python -m benchmarks.service
    python -m benchmarks.service --seconds 10 --jobs 100000

Starts its own database servers and APIs in a temporary folder. SEFT_API_PROCESSES sets the number of processes per API.
No worker is started, because it would use the processor cores. The first part creates jobs at a fixed rate without
waiting for responses. The second part sends the same requests in turn to two databases, with 100 jobs and with many,
and compares the medians.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psycopg

from benchmarks.load_generator import Connection, Request, Response, quantile, send_at_rate
from benchmarks.many_jobs import RARE, STEPS, fill
from core.access import keys, sign_ins
from core.access.keys import Scope
from core.infra.database import make_engine, make_sessions, one_session
from core.settings import Settings
from local.processes import children_of
from local.servers import Servers, make_settings
from migrations import upgrade
from tests import claims
from tests.hollow import TEXTS, write_hollow
from tests.serving import running_api

FEW = 100
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Site:
    """A running API with a database of its own."""

    port: int
    process: int
    """Process id of the API, or of its supervisor if it has several processes."""
    database: str
    key: str
    metrics_key: str
    settings: Settings
    job: Json
    """Body of a request that creates a job."""

    @property
    def headers(self) -> dict[str, str]:
        """Headers of a request with an API key."""
        return {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}

    def headers_of(self, path: str) -> dict[str, str]:
        """Return the headers of a GET request of this path. Only the key for metrics may read the metrics."""
        return {"Authorization": f"Bearer {self.metrics_key}"} if path == "/metrics" else self.signed_in()

    def signed_in(self) -> dict[str, str]:
        """Return the headers of a request with a browser's session cookie, which is valid for 15 minutes."""
        with one_session(self.settings) as session:
            visit = sign_ins.begin(session, self.key)
        assert visit is not None
        return {**self.headers, "Cookie": f"seft_session={visit.token}"}


def main() -> None:
    """Run the measurements, print them and save them."""
    arguments = _arguments()
    folder = Path(tempfile.mkdtemp(prefix="seft-benchmark-"))
    made_with: Json = {"machine": platform.machine(), "cores": os.cpu_count(), "load_before": os.getloadavg()}
    try:
        with Servers(folder) as servers:
            result = {
                "made_with": made_with,
                "arrivals": _arrivals(servers, arguments) if arguments.seconds else None,
                "growth": _growth(servers, arguments) if arguments.jobs else None,
            }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=200, help="job creations per second")
    parser.add_argument("--seconds", type=float, default=60, help="duration of that load; 0 skips it")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1_000_000,
        help=f"jobs in the large database, which has {STEPS // 100} times as many metric points; 0 skips this part",
    )
    parser.add_argument("--rounds", type=int, default=100, help="times each request is sent to both databases")
    parser.add_argument("--out", type=Path, default=Path("build/service.json"), help="JSON file for the results")
    return parser.parse_args()


@contextmanager
def _site(servers: Servers, name: str) -> Iterator[Site]:
    with psycopg.connect(servers.postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    variables = {**servers.environment(), "SEFT_DATABASE_URL": servers.postgres.url(name)}
    upgrade(settings := make_settings(variables))
    with one_session(settings) as session:
        _, key = keys.issue(session, "default", "benchmark", Scope.ADMIN)
        _, metrics_key = keys.issue(session, "default", "metrics", Scope.METRICS)
    folder = servers.lock.folder / name
    models = _models(folder)
    # The limits are checked as usual, but never reached.
    limits = {"SEFT_RATE_LIMIT": "1000000", "SEFT_TENANT_WAITING": "1000000000"}
    overrides = {"SEFT_MODEL_ROOTS": json.dumps([str(models)]), **limits}
    with running_api(folder, {**variables, **overrides}) as api:
        data = httpx2.post(
            f"{api.url}/datasets",
            files={"file": ("texts.jsonl", TEXTS)},
            headers={"Authorization": f"Bearer {key}"},
        )
        job = {
            "model": "tiny",
            "dataset": data.raise_for_status().json()["id"],
            "sparsity": 0.6,
            "metadata": {"team": "a"},
        }
        assert api.process is not None
        yield Site(api.port, api.process.pid, servers.postgres.url(name), key, metrics_key, settings, job)


def _models(folder: Path) -> Path:
    """Create a folder with a model that passes the checks of the API. Returns its path."""
    return write_hollow(folder / "models" / "tiny").parent


def _arrivals(servers: Servers, arguments: argparse.Namespace) -> Json:
    with _site(servers, "arrivals") as site:
        request = Request("POST", "/jobs", site.headers, json.dumps(site.job).encode())
        send_at_rate(site.port, request, rate=20, seconds=3)
        before = _cpu_seconds(site.process)
        responses = send_at_rate(site.port, request, rate=arguments.rate, seconds=arguments.seconds)
        cpu_seconds = _cpu_seconds(site.process) - before
        created = {json.loads(each.body)["id"] for each in responses if each.status == 202}
        with psycopg.connect(site.database) as connection:
            stored = {row[0] for row in connection.execute("SELECT id FROM jobs")}
    milliseconds = [1000 * each.seconds for each in responses]
    result = {
        "requests": len(responses),
        "errors": sum(each.status != 202 for each in responses),
        "jobs_made": len(created),
        "jobs_lost": len(created - stored),
        "p50_ms": quantile(milliseconds, 0.5),
        "p99_ms": quantile(milliseconds, 0.99),
        "longest_ms": max(milliseconds),
        "api_cpu_ms": 1000 * cpu_seconds / len(responses),
        "load_after": os.getloadavg(),
    }
    print(f"POST /jobs, {arguments.rate:g} per second for {arguments.seconds:g} s: {result}", flush=True)
    return result


def _cpu_seconds(process: int) -> float:
    """Return the CPU time of a process and its children, in seconds."""
    stats = [Path(f"/proc/{each}/stat").read_text() for each in (process, *children_of(process))]
    fields = [stat.rpartition(")")[2].split() for stat in stats]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


def _growth(servers: Servers, arguments: argparse.Namespace) -> list[Json]:
    with _site(servers, "few") as few, _site(servers, "many") as many:
        places = [(few, _fill(few, FEW)), (many, _fill(many, arguments.jobs))]
        connections = [(site, Connection(site.port), job) for site, job in places]
        rows = []
        print(f"request; median with {FEW} jobs; median with {arguments.jobs} jobs; ratio", flush=True)
        for name, path in PATHS.items():
            seconds: tuple[list[float], list[float]] = ([], [])
            requests = [Request("GET", path.format(job=job), site.headers_of(path)) for site, _, job in connections]
            for _ in range(arguments.rounds):
                for (_, connection, _), request, times in zip(connections, requests, seconds, strict=True):
                    times.append(_send(connection, request).seconds)
            rows.append(_compared(name, *seconds))
        rows.append(_compared("claim of a worker", *(_claims(site, arguments.rounds) for site in (few, many))))
    return rows


def _compared(name: str, few: list[float], many: list[float]) -> Json:
    small, large = (1000 * statistics.median(each) for each in (few, many))
    print(f"{name:45} {small:8.1f} ms {large:8.1f} ms {large / small:6.2f}", flush=True)
    return {"request": name, "few_ms": small, "many_ms": large, "ratio": large / small}


def _claims(site: Site, rounds: int) -> list[float]:
    """Return the seconds of each of `rounds` claims, which are rolled back."""
    engine, seconds = make_engine(site.settings), []
    for _ in range(rounds):
        with make_sessions(engine)() as session:
            began = time.perf_counter()
            if claims.claim(session, "benchmark", 60, tenant_running=32) is None:
                raise RuntimeError("there is no queued job to claim")
            seconds.append(time.perf_counter() - began)
            session.rollback()
    engine.dispose()
    return seconds


PATHS = {
    "GET /jobs": "/jobs",
    "GET /jobs, 100 per page": "/jobs?limit=100",
    "GET /jobs, by status": "/jobs?status=failed",
    "GET /jobs, by status, no match": "/jobs?status=paused",
    "GET /jobs, by model, one match": f"/jobs?model={RARE}",
    "GET /jobs, by metadata, one match": "/jobs?metadata=case%3Drare",
    "GET /jobs, by metadata, all but one match": "/jobs?metadata=team%3Da",
    "GET /jobs/{id}": "/jobs/{job}",
    "GET /jobs/{id}/events": "/jobs/{job}/events",
    "GET /jobs/{id}/metrics": "/jobs/{job}/metrics",
    "GET /jobs/{id}/metrics, downsampled": "/jobs/{job}/metrics?points=200",
    "dashboard: overview": "/dashboard/",
    "dashboard: jobs": "/dashboard/jobs",
    "dashboard: jobs, sparsest first": "/dashboard/jobs?order=sparsest",
    "dashboard: jobs, best first": "/dashboard/jobs?order=best",
    "dashboard: a job": "/dashboard/jobs/{job}",
    "GET /metrics": "/metrics",
}


def _fill(site: Site, jobs: int) -> str:
    request = Request("POST", "/jobs", site.headers, json.dumps(site.job).encode())
    like = json.loads(Connection(site.port).send(request).body)["id"]
    return fill(site.database, like, jobs)


def _send(connection: Connection, request: Request) -> Response:
    response = connection.send(request)
    if response.status != 200:
        raise RuntimeError(f"GET {request.path} returned {response.status}: {response.body[:500]!r}")
    return response


if __name__ == "__main__":
    main()
