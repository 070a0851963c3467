"""The service from Python: upload a dataset, create a job, watch it, fetch what it made.

Calls are sent again when the connection fails or the server is busy; that is safe, because every call but the making of
a key may come twice: a job carries an idempotency key. No torch, nothing of the server.
"""

import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Self, cast

import httpx2

from client.answers import AuditEntry, Checkpoint, Dataset, Event, File, Job, Json, Key, Metric
from client.errors import ApiProblem, ClientError, IntegrityError

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds between tries, where the server names none."""
BUSY = (429, 503)
FINAL = ("succeeded", "failed", "cancelled")
TIMEOUT = httpx2.Timeout(30.0, read=120.0)
CHUNK_BYTES = 1 << 20


class Client:
    """One caller of one service. `url` and `api_key` come from SEFT_URL and SEFT_API_KEY where they are not given.

    Raises ApiProblem when the service refuses, ClientError when it cannot be reached.
    """

    def __init__(self, url: str | None = None, api_key: str | None = None) -> None:
        self.url = url or _from_environment("SEFT_URL")
        key = api_key or _from_environment("SEFT_API_KEY")
        self._http = httpx2.Client(base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=TIMEOUT)
        # A presigned link is its own permission; the key is none of the object storage's business.
        self._links = httpx2.Client(timeout=TIMEOUT)

    def upload_dataset(self, path: Path) -> Dataset:
        """Upload a JSONL file with one record a line, of any format; refused with the number of every wrong line."""

        def send() -> httpx2.Response:
            with path.open("rb") as file:
                return self._http.post("/datasets", files={"file": (path.name, file)})

        return cast("Dataset", _answer(send))

    def create_job(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Create a job. The same key with the same spec answers the same job again."""
        return self._create("/jobs", spec, idempotency_key)

    def clone_job(
        self, job_id: str, overrides: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> Job:
        """Create a job that asks for what another one asked for, but for these fields; None stands for the default."""
        return self._create(f"/jobs/{job_id}/clone", overrides or {}, idempotency_key)

    def job(self, job_id: str) -> Job:
        """A job as it stands."""
        return cast("Job", self._get(f"/jobs/{job_id}"))

    def jobs(
        self, *, status: str | None = None, model: str | None = None, metadata: Mapping[str, str] | None = None
    ) -> Iterator[Job]:
        """The caller's jobs, newest first, page after page: all, or those of a status, a model, some metadata."""
        pairs = [f"{name}={value}" for name, value in (metadata or {}).items()]
        asked = {"status": status, "model": model, "metadata": pairs}
        return self._pages("/jobs", "id", {name: value for name, value in asked.items() if value})

    def cancel(self, job_id: str) -> Job:
        """Cancel a job; one that is cancelled already stays so."""
        return self._ask(job_id, "cancel")

    def pause(self, job_id: str) -> Job:
        """Keep a job from running; a running one saves its state first and is `pausing` until then."""
        return self._ask(job_id, "pause")

    def resume(self, job_id: str) -> Job:
        """Let a paused job go on."""
        return self._ask(job_id, "resume")

    def stop(self, job_id: str) -> Job:
        """End a job's training early; what there is gets published."""
        return self._ask(job_id, "stop")

    def start(self, job_id: str) -> Job:
        """Start a job that was made with `auto_start: false`."""
        return self._ask(job_id, "start")

    def events(self, job_id: str) -> Iterator[Event]:
        """What happened to a job, oldest first."""
        return self._pages(f"/jobs/{job_id}/events", "id", {})

    def metrics(self, job_id: str, *, after_step: int = -1, points: int | None = None) -> Iterator[Metric]:
        """What was measured, by step; with `points`, as so many rows at most, each the mean of a span of steps."""
        asked = {"after_step": after_step} | ({"points": points} if points else {})
        return self._pages(f"/jobs/{job_id}/metrics", "step", asked)

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """What a job has published, oldest first, each file with a link."""
        return cast("list[Checkpoint]", self._get(f"/jobs/{job_id}/checkpoints")["data"])

    def create_key(self, name: str, scope: str = "write") -> Key:
        """Make an API key that may `read`, `write` or `admin`; only this answer holds its `secret`."""
        # Sent once: a call that was lost on its way back has made a key that nobody knows.
        body = {"name": name, "scope": scope}
        return cast("Key", _answer(lambda: self._http.post("/keys", json=body), pauses=()))

    def api_keys(self) -> Iterator[Key]:
        """The tenant's API keys, newest first, revoked ones included."""
        return self._pages("/keys", "id", {})

    def revoke_key(self, key_id: str) -> Key:
        """End an API key at once; one that is revoked already stays so."""
        return cast("Key", _answer(lambda: self._http.delete(f"/keys/{key_id}")))

    def audit(self) -> Iterator[AuditEntry]:
        """Every change made with one of the tenant's keys, newest first."""
        return self._pages("/audit", "id", {})

    def watch(self, job_id: str, *, interval: float = 1.0) -> Iterator[Job]:
        """The job every `interval` seconds, for the last time in its final state."""
        while True:
            job = self.job(job_id)
            yield job
            if job["status"] in FINAL:
                return
            time.sleep(interval)

    def download(self, job_id: str, folder: Path) -> list[Path]:
        """Fetch the newest checkpoint into `folder`. A file takes its name only when its SHA-256 is right."""
        checkpoints = self.checkpoints(job_id)
        if not checkpoints:
            raise ClientError(f"{job_id} has published no checkpoint; it is {self.job(job_id)['status']}.")
        return [self._fetch(file, folder) for file in checkpoints[-1]["files"]]

    def close(self) -> None:
        """Close the connections."""
        self._http.close()
        self._links.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _create(self, path: str, body: Mapping[str, Any], idempotency_key: str | None) -> Job:
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return cast("Job", _answer(lambda: self._http.post(path, json=dict(body), headers=headers)))

    def _ask(self, job_id: str, wish: str) -> Job:
        return cast("Job", _answer(lambda: self._http.post(f"/jobs/{job_id}/{wish}")))

    def _get(self, path: str, parameters: Mapping[str, Any] | None = None) -> Json:
        return _answer(lambda: self._http.get(path, params=dict(parameters or {})))

    def _pages(self, path: str, cursor: str, parameters: Mapping[str, Any]) -> Iterator[Any]:
        """All rows behind a paged route; the next page is named by the last row's `cursor`."""
        name = "after" if cursor == "id" else f"after_{cursor}"
        page = self._get(path, parameters)
        yield from page["data"]
        while page["has_more"]:
            page = self._get(path, {**parameters, name: page["data"][-1][cursor]})
            yield from page["data"]

    def _fetch(self, file: File, folder: Path) -> Path:
        name = PurePosixPath(file["name"])
        if name.is_absolute() or ".." in name.parts:
            raise IntegrityError(f"The service names a file outside of the folder: {file['name']!r}.")
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.partial")
        digest = hashlib.sha256()
        try:
            with self._links.stream("GET", file["url"]) as response, partial.open("wb") as output:
                response.raise_for_status()
                for chunk in response.iter_bytes(CHUNK_BYTES):
                    digest.update(chunk)
                    output.write(chunk)
        except httpx2.HTTPError as error:
            raise ClientError(f"{file['name']} cannot be fetched: {error}") from error
        if digest.hexdigest() != file["sha256"]:
            raise IntegrityError(
                f"{file['name']} has the SHA-256 {digest.hexdigest()}; published was {file['sha256']}."
            )
        return partial.replace(target)


def _answer(send: Callable[[], httpx2.Response], pauses: Sequence[float] | None = None) -> Json:
    """The JSON that a call brings in the end, after as many tries as there are pauses, and one."""
    for pause in (*(PAUSES if pauses is None else pauses), None):
        try:
            response = send()
        except httpx2.TransportError as error:
            if pause is None:
                raise ClientError(
                    f"The service does not answer: {error}. Is SEFT_URL right, and does it run?"
                ) from error
            time.sleep(pause)
            continue
        named = response.headers.get("Retry-After", "")
        # 409 with a time: a request with the same Idempotency-Key is still being served.
        busy = response.status_code in BUSY or (response.status_code == 409 and named)
        if not busy or pause is None:
            break
        time.sleep(float(named) if named.isdecimal() else pause)
    if not response.is_success:
        raise ApiProblem.read(response)
    try:
        answer: Json = response.json()
    except ValueError as error:
        raise ClientError(f"{response.request.url} answers no JSON. Is SEFT_URL the address of the service?") from error
    return answer


def _from_environment(name: str) -> str:
    if value := os.environ.get(name):
        return value
    raise ClientError(f"{name} is not set. `make up` prints the line that sets it.")
