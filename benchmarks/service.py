"""How fast does the service answer: 200 requests for a job a second, and lists and reports with a million jobs?

    python -m benchmarks.service
    python -m benchmarks.service --seconds 10 --jobs 100000

It starts servers and APIs of its own in a folder that it removes, each of as many processes as SEFT_API_PROCESSES says.
No worker runs: it would take the cores. First jobs are asked for at moments that do not wait for answers. Then two
databases, one of 100 jobs and one of many, are asked the same in turn, and the medians compared.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psycopg

from benchmarks.arrivals import Answer, Caller, Request, arrive, quantile
from benchmarks.crowd import RARE, STEPS, fill
from core.access import keys, sign_ins
from core.access.keys import Scope
from core.infra.database import make_engine, make_sessions
from core.settings import Settings
from local.folder import FolderLock
from local.processes import children_of
from local.servers import Servers, make_settings
from local.stack import Api
from migrations import upgrade

FEW = 100
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Site:
    """A running API over a database of its own."""

    port: int
    process: int
    """Id of the API's process, or of the supervisor of several."""
    database: str
    key: str
    settings: Settings
    job: Json
    """What asks for a job."""

    @property
    def headers(self) -> dict[str, str]:
        """Of every request."""
        return {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}

    def signed_in(self) -> dict[str, str]:
        """The same, and a browser's cookie, which is good for a quarter of an hour."""
        engine = make_engine(self.settings)
        with make_sessions(engine).begin() as session:
            visit = sign_ins.begin(session, self.key)
        engine.dispose()
        assert visit is not None
        return {**self.headers, "Cookie": f"seft_session={visit.token}"}


def main() -> None:
    """Measure, print, keep."""
    arguments = _arguments()
    folder = Path(tempfile.mkdtemp(prefix="seft-benchmark-"))
    made_with: Json = {"machine": platform.machine(), "cores": os.cpu_count(), "load_before": os.getloadavg()}
    try:
        with Servers(folder) as servers:
            result = {
                "made_with": made_with,
                "arrivals": _arrivals(servers, arguments) if arguments.seconds else None,
                "growth": _growth(servers, arguments),
            }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=200, help="requests for a job a second")
    parser.add_argument("--seconds", type=float, default=60, help="for how long they come; 0: none")
    parser.add_argument(
        "--jobs", type=int, default=1_000_000, help=f"in the large database; {STEPS // 100} times the points"
    )
    parser.add_argument("--rounds", type=int, default=100, help="how often everything is asked of both databases")
    parser.add_argument("--out", type=Path, default=Path("build/service.json"), help="JSON file of the results")
    return parser.parse_args()


@contextmanager
def _site(servers: Servers, name: str) -> Iterator[Site]:
    with psycopg.connect(servers.postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    variables = {**servers.environment(), "SEFT_DATABASE_URL": servers.postgres.url(name)}
    upgrade(settings := make_settings(variables))
    engine = make_engine(settings)
    with make_sessions(engine).begin() as session:
        _, key = keys.issue(session, "default", "benchmark", Scope.ADMIN)
    engine.dispose()
    lock = FolderLock(servers.lock.folder / name)
    lock.acquire()
    models = _models(lock.folder)
    # Requests are counted as everywhere, and none is refused.
    more = {"SEFT_MODEL_ROOTS": json.dumps([str(models)]), "SEFT_RATE_LIMIT": "1000000"}
    api = Api(lock, {**os.environ, **variables, **more})
    try:
        api.start()
        data = httpx2.post(
            f"{api.url}/datasets",
            files={"file": ("texts.jsonl", b'{"text": "a"}\n{"text": "b"}\n')},
            headers={"Authorization": f"Bearer {key}"},
        )
        job = {
            "model": "tiny",
            "dataset": data.raise_for_status().json()["id"],
            "sparsity": 0.6,
            "metadata": {"team": "a"},
        }
        assert api.process is not None
        yield Site(api.port, api.process.pid, servers.postgres.url(name), key, settings, job)
    finally:
        api.stop()
        lock.release()


def _models(folder: Path) -> Path:
    """A folder with what the API looks at of a model."""
    tiny = folder / "models" / "tiny"
    tiny.mkdir(parents=True)
    (tiny / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    for name in ("tokenizer.json", "model.safetensors"):
        (tiny / name).write_text("{}")
    return tiny.parent


def _arrivals(servers: Servers, arguments: argparse.Namespace) -> Json:
    with _site(servers, "arrivals") as site:
        asking = Request("POST", "/jobs", site.headers, json.dumps(site.job).encode())
        arrive(site.port, asking, rate=20, seconds=3)
        before = _cpu_seconds(site.process)
        answers = arrive(site.port, asking, rate=arguments.rate, seconds=arguments.seconds)
        spent = _cpu_seconds(site.process) - before
        made = {json.loads(each.body)["id"] for each in answers if each.status == 202}
        with psycopg.connect(site.database) as connection:
            kept = {row[0] for row in connection.execute("SELECT id FROM jobs")}
    milliseconds = [1000 * each.seconds for each in answers]
    found = {
        "requests": len(answers),
        "errors": sum(each.status != 202 for each in answers),
        "jobs_made": len(made),
        "jobs_lost": len(made - kept),
        "p50_ms": quantile(milliseconds, 0.5),
        "p99_ms": quantile(milliseconds, 0.99),
        "longest_ms": max(milliseconds),
        "api_cpu_ms": 1000 * spent / len(answers),
        "load_after": os.getloadavg(),
    }
    print(f"POST /jobs, {arguments.rate:g} a second for {arguments.seconds:g} s: {found}", flush=True)
    return found


def _cpu_seconds(process: int) -> float:
    """What a process and its children have taken of the processor."""
    stats = [Path(f"/proc/{each}/stat").read_text() for each in (process, *children_of(process))]
    fields = [stat.rpartition(")")[2].split() for stat in stats]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


def _growth(servers: Servers, arguments: argparse.Namespace) -> list[Json]:
    with _site(servers, "few") as few, _site(servers, "many") as many:
        places = [(few, _fill(few, FEW)), (many, _fill(many, arguments.jobs))]
        callers = [(site, Caller(site.port), job) for site, job in places]
        rows = []
        print(f"medians with {FEW} jobs, with {arguments.jobs}, ratio", flush=True)
        for name, path in PATHS.items():
            seconds: tuple[list[float], list[float]] = ([], [])
            asking = [Request("GET", path.format(job=job), site.signed_in()) for site, _, job in callers]
            for _ in range(arguments.rounds):
                for (_, caller, _), request, into in zip(callers, asking, seconds, strict=True):
                    into.append(_asked(caller, request).seconds)
            small, large = (1000 * statistics.median(each) for each in seconds)
            rows.append({"request": name, "few_ms": small, "many_ms": large, "ratio": large / small})
            print(f"{name:45} {small:8.1f} ms {large:8.1f} ms {large / small:6.2f}", flush=True)
    return rows


PATHS = {
    "GET /jobs": "/jobs",
    "GET /jobs, 100 of them": "/jobs?limit=100",
    "GET /jobs, of a status": "/jobs?status=failed",
    "GET /jobs, of a status that none has": "/jobs?status=paused",
    "GET /jobs, of a model that one has": f"/jobs?model={RARE}",
    "GET /jobs, of metadata that one has": "/jobs?metadata=case%3Drare",
    "GET /jobs, of metadata that all but one have": "/jobs?metadata=team%3Da",
    "GET /jobs/{id}": "/jobs/{job}",
    "GET /jobs/{id}/events": "/jobs/{job}/events",
    "GET /jobs/{id}/metrics": "/jobs/{job}/metrics",
    "GET /jobs/{id}/metrics, thinned": "/jobs/{job}/metrics?points=200",
    "dashboard: overview": "/dashboard/",
    "dashboard: jobs": "/dashboard/jobs",
    "dashboard: jobs, the sparsest first": "/dashboard/jobs?order=sparsest",
    "dashboard: jobs, the best first": "/dashboard/jobs?order=best",
    "dashboard: a job": "/dashboard/jobs/{job}",
    "GET /metrics": "/metrics",
}


def _fill(site: Site, jobs: int) -> str:
    asking = Request("POST", "/jobs", site.headers, json.dumps(site.job).encode())
    like = json.loads(Caller(site.port).send(asking).body)["id"]
    return fill(site.database, like, jobs)


def _asked(caller: Caller, request: Request) -> Answer:
    answer = caller.send(request)
    if answer.status != 200:
        raise RuntimeError(f"GET {request.path} was answered {answer.status}: {answer.body[:500]!r}")
    return answer


if __name__ == "__main__":
    main()
