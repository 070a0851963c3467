"""Requests of the main path with the answers of a service, for `docs/api.md`. A test compares them with the page.

Values that differ from run to run are replaced: ids, times, ETags and links.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi import FastAPI
from starlette.testclient import TestClient

from api.app import make_app
from core.access import keys
from core.access.keys import Scope
from core.jobs import attempts
from core.jobs.attempts import Attempt
from core.states import Phase
from local.servers import Servers, make_settings
from migrations import upgrade
from tests import claims
from tests.core.conftest import GPU
from tests.hollow import write_hollow

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
BEGIN, END = "<!-- made from a test -->", "<!-- end -->"
MODEL = "SmolLM2-135M-Instruct"
"""Name of a local model. The service needs only the headers of its files, because no job is trained."""
RECORDS = "".join(f'{{"text": "Question {n}: How do I reset my password? Open the settings."}}\n' for n in range(60))
HEADERS = ("Location", "Retry-After", "ETag")
WIDTH = 110
LEFT_OUT = "…"
REPLACED = {
    r"\b(job|file|ckpt|req)_[0-9a-z]{26}": r"\1_01jz5h4c8m2v9q7w3t6x0y1b2d",
    r'(?<="expires_at": ")[^"]+': "2026-03-02T12:00:00Z",
    r"(?<!expires_at\": \")\d{4}-\d\d-\d\dT[\d:.]+(Z|\+00:00)": "2026-01-31T12:00:00Z",
    r"ETag: .*": 'ETag: "9f86d081884c7d659a2feaa0c55ad015"',
    r'http://[^/"]+/[^/"]+/([^?"]+)\?[^"]*': r"https://s3.example/seft/\1?X-Amz-Signature=…",
}
Json = dict[str, Any]


def examples(app: FastAPI, client: TestClient) -> str:
    """Return the block of the page: each request of the main path with its answer."""
    text = "\n\n".join(_steps(app, client))
    for pattern, replacement in REPLACED.items():
        text = re.sub(pattern, replacement, text)
    return f"{BEGIN}\n\n{text}\n\n{END}"


def block(page: str) -> str:
    """Return the block of the page that a test makes."""
    start = page.index(BEGIN)
    return page[start : page.index(END, start) + len(END)]


def write() -> None:
    """Start servers, and write the block of the page."""
    with TemporaryDirectory() as name, Servers(Path(name) / "servers") as servers:
        settings = make_settings(servers.environment())
        upgrade(settings)
        root = write_hollow(Path(name) / "models" / MODEL).parent
        app = make_app(settings.model_copy(update={"model_roots": [root]}))
        with TestClient(app) as client:
            with app.state.services.sessions.begin() as session:
                client.headers["Authorization"] = f"Bearer {keys.issue(session, 'default', 'docs', Scope.WRITE)[1]}"
            page = PAGE.read_text()
            PAGE.write_text(page.replace(block(page), examples(app, client)))


def _steps(app: FastAPI, client: TestClient) -> Iterator[str]:
    answer = client.post("/datasets", files={"file": ("texts.jsonl", RECORDS)})
    upload = "POST /datasets\nContent-Type: multipart/form-data\n\n(the file texts.jsonl, as the part `file`)"
    yield _step("Upload a dataset:", upload, answer)
    request = {"model": MODEL, "dataset": answer.json()["id"], "sparsity": 0.6}
    answer = client.post("/jobs", json=request)
    job = answer.json()
    spec = _some(job["spec"], *request)
    shown = _some({**job, "spec": spec}, "id", "status", "reason", "progress", "queue_position", "spec", "created_at")
    yield _step("Create a job:", _post("/jobs", request), answer, shown)
    attempt = _train(app)
    answer = client.get(f"/jobs/{attempt.job_id}")
    names = ("id", "status", "phase", "progress", "step", "attempt", "scores", "error", "started_at", "finished_at")
    yield _step("Get the job while it trains:", f"GET /jobs/{job['id']}", answer, _some(answer.json(), *names))
    path = f"/jobs/{attempt.job_id}/metrics?after_step=180"
    yield _step("Read its metrics after step 180:", f"GET {path}", client.get(path))
    path = f"/jobs/{attempt.job_id}/events?limit=3"
    yield _step("Read its first events:", f"GET {path}", client.get(path))
    _publish(app, attempt)
    path = f"/jobs/{attempt.job_id}/checkpoints"
    yield _step("List the files of its result, with links to download them:", f"GET {path}", client.get(path))
    wrong = {**request, "sparsity": 60}
    yield _step("A request that is rejected:", _post("/jobs", wrong), client.post("/jobs", json=wrong))


def _train(app: FastAPI) -> Attempt:
    """Do what a worker does in the first half of a job."""
    with app.state.services.sessions.begin() as session:
        attempt = claims.claim(session, "gpu-1:4242:9f86d081", 3600, GPU)
        assert attempt is not None
        attempts.set_progress(session, attempt, phase=Phase.LOADING, progress=0.0, step=0)
        attempts.set_progress(session, attempt, phase=Phase.PRUNING, progress=0.05, step=0)
        attempts.add_scores(session, attempt, {"dense": 20.63, "pruned": 51.2})
        attempts.set_progress(session, attempt, phase=Phase.TRAINING, progress=0.42, step=181)
        rates = {"learning_rate": 0.0002, "tokens_per_second": 3150.0, "memory_bytes": 1530000000.0}
        losses = {180: 2.913, 181: 2.907}
        attempts.add_metrics(session, attempt, [(step, {"loss": loss, **rates}) for step, loss in losses.items()])
    return attempt


def _publish(app: FastAPI, attempt: Attempt) -> None:
    """Do what a worker does at the end of a job."""
    names = {"model.safetensors": 269060552, "manifest.json": 1411}
    files = [{"name": each, "size": size, "sha256": keys.digest(each)} for each, size in names.items()]
    with app.state.services.sessions.begin() as session:
        attempts.publish(
            session,
            attempt,
            step=8192,
            prefix=f"jobs/{attempt.job_id}/1/result/",
            sha256=keys.digest("manifest.json"),
            files=files,
            scores={"dense": 20.63, "pruned": 51.2, "repaired": 24.9},
            measured={},
            days=30,
        )


def _post(path: str, body: Json) -> str:
    return f"POST {path}\nContent-Type: application/json\n\n{_text(body)}"


def _step(title: str, request: str, answer: Any, shown: Json | None = None) -> str:
    headers = [f"{name}: {answer.headers[name]}" for name in HEADERS if name in answer.headers]
    head = "\n".join([f"HTTP/1.1 {answer.status_code}", *headers])
    return f"{title}\n\n```http\n{request}\n\n{head}\n\n{_text(answer.json() if shown is None else shown)}\n```"


def _some(answer: Json, *names: str) -> Json:
    """Return these fields of an answer, and a mark in place of the others."""
    return {**{name: answer[name] for name in names}, **({LEFT_OUT: None} if len(answer) > len(names) else {})}


def _text(value: Any, indent: str = "") -> str:
    """Return a value as JSON, in one line if that is short."""
    line = json.dumps(value, ensure_ascii=False).replace(f'"{LEFT_OUT}": null', LEFT_OUT)
    if len(indent + line) <= WIDTH or not isinstance(value, dict | list):
        return line
    inner = f"{indent}  "
    if isinstance(value, list):
        lines = [_text(each, inner) for each in value]
        return f"[\n{inner}" + f",\n{inner}".join(lines) + f"\n{indent}]"
    lines = [name if name == LEFT_OUT else f"{json.dumps(name)}: {_text(each, inner)}" for name, each in value.items()]
    return f"{{\n{inner}" + f",\n{inner}".join(lines) + f"\n{indent}}}"
