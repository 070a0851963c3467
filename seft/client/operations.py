"""All that can be asked of the service, told once for the client that waits and the one that awaits."""

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from seft.client import downloads, uploads
from seft.client.errors import ApiProblem, ClientError, Unreachable
from seft.client.events import EventReader
from seft.client.responses import (
    AuditEntry,
    Checkpoint,
    Dataset,
    Delivery,
    Estimate,
    Event,
    HubToken,
    Job,
    Json,
    Key,
    Metric,
    Model,
    Preview,
    Version,
    Webhook,
    Worker,
)
from seft.client.retries import tried
from seft.client.steps import (
    QUIET_SECONDS,
    Flow,
    Open,
    Pause,
    Progress,
    Read,
    Reply,
    Request,
    Row,
    Send,
    Steps,
    flow,
    operation,
)

FINAL = ("succeeded", "failed", "cancelled")
WAIT_SECONDS = 30
"""How long the service may hold an answer back; proxies cut what is silent for a minute."""


class Operations:
    """The methods of `Client` and `AsyncClient`.

    Each raises ApiProblem when the service refuses and ClientError when it cannot be reached.
    """

    pauses: Sequence[float]

    @operation
    def version(self) -> Steps[Version]:
        """What runs there; needs no key."""
        return cast("Version", (yield from self._call(Request("GET", "/version"))))

    @operation
    def upload_dataset(
        self,
        path: Path,
        *,
        invalid_sample_skip_percentage: float = 0.0,
        at_once: int = 4,
        progress: Progress | None = None,
    ) -> Steps[Dataset]:
        """Upload a file of records: JSONL, plain or by gzip or zstd, or Parquet; refused with every wrong line.

        A large one is sent in parts, so many at once; after anything that ended it early, call it again to go on.
        """
        skip = {"invalid_sample_skip_percentage": invalid_sample_skip_percentage}
        if path.stat().st_size <= uploads.PARTS_FROM:
            request = Request("POST", "/datasets", query=skip, file=path, progress=progress)
            return cast("Dataset", (yield from self._call(request)))
        return (
            yield from uploads.send(path, skip, call=self._call, at_once=at_once, progress=progress, pauses=self.pauses)
        )

    @operation
    def import_dataset(
        self, source: str, *, name: str | None = None, invalid_sample_skip_percentage: float = 0.0
    ) -> Steps[Dataset]:
        """Have the service fetch `s3://bucket/key` or `hf://datasets/owner/name/file`; what it became, once it has."""
        asked = {"source": source, "name": name, "invalid_sample_skip_percentage": invalid_sample_skip_percentage}
        # Sent once: a call that was lost on its way back has begun an import that would be begun again.
        begun = _answer((yield from tried(Send(Request("POST", "/imports", json=asked)), ())))
        return (yield from uploads.imported(begun["id"], self._call))

    @operation
    def dataset(self, dataset_id: str) -> Steps[Dataset]:
        """A dataset."""
        return cast("Dataset", (yield from self._get(f"/datasets/{dataset_id}")))

    @operation
    def delete_dataset(self, dataset_id: str) -> Steps[Dataset]:
        """Delete a dataset that no job needs any more."""
        return cast("Dataset", (yield from self._call(Request("DELETE", f"/datasets/{dataset_id}"))))

    @operation
    def preview_dataset(
        self, dataset_id: str, model: str, *, revision: str | None = None, limit: int = 5
    ) -> Steps[Preview]:
        """The first records as a model's tokenizer reads them, the trained part marked, and the tokens of all."""
        asked = {"model": model, "limit": limit} | ({"revision": revision} if revision else {})
        return cast("Preview", (yield from self._get(f"/datasets/{dataset_id}/preview", asked)))

    @flow
    def datasets(self) -> Flow[Dataset]:
        """The caller's datasets, newest first."""
        yield from self._pages("/datasets", "id", {})

    @operation
    def model(self, model_id: str, *, revision: str | None = None) -> Steps[Model]:
        """A model: one that is listed, or any of the hub."""
        query = {} if revision is None else {"revision": revision}
        return cast("Model", (yield from self._get(f"/models/{quote(model_id)}", query)))

    @flow
    def models(self) -> Flow[Model]:
        """What can be repaired there: local models, those in the hub's cache, and what the caller's jobs published."""
        yield from self._pages("/models", "id", {})

    @operation
    def create_job(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Steps[Job]:
        """Create a job. The same key with the same spec answers the same job again."""
        return (yield from self._create("/jobs", spec, idempotency_key))

    @operation
    def estimate_job(self, spec: Mapping[str, Any]) -> Steps[Estimate]:
        """What a job would take: memory, time, bytes, and on which worker it fits; needs no dataset."""
        return cast("Estimate", (yield from self._call(Request("POST", "/jobs/estimate", json=dict(spec)))))

    @operation
    def clone_job(
        self, job_id: str, overrides: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> Steps[Job]:
        """Create a job that asks for what another one asked for, but for these fields; None stands for the default."""
        return (yield from self._create(f"/jobs/{job_id}/clone", overrides or {}, idempotency_key))

    @operation
    def job(self, job_id: str) -> Steps[Job]:
        """A job as it stands."""
        return cast("Job", (yield from self._get(f"/jobs/{job_id}")))

    @flow
    def jobs(
        self, *, status: str | None = None, model: str | None = None, metadata: Mapping[str, str] | None = None
    ) -> Flow[Job]:
        """The caller's jobs, newest first, page after page: all, or those of a status, a model, some metadata."""
        pairs = [f"{name}={value}" for name, value in (metadata or {}).items()]
        asked = {"status": status, "model": model, "metadata": pairs}
        yield from self._pages("/jobs", "id", {name: value for name, value in asked.items() if value})

    @operation
    def workers(self) -> Steps[list[Worker]]:
        """Every worker of the service."""
        return cast("list[Worker]", (yield from self._get("/workers"))["data"])

    @operation
    def cancel(self, job_id: str) -> Steps[Job]:
        """Cancel a job; one that is cancelled already stays so."""
        return (yield from self._ask(job_id, "cancel"))

    @operation
    def pause(self, job_id: str) -> Steps[Job]:
        """Keep a job from running; a running one saves its state first and is `pausing` until then."""
        return (yield from self._ask(job_id, "pause"))

    @operation
    def resume(self, job_id: str) -> Steps[Job]:
        """Let a paused job go on."""
        return (yield from self._ask(job_id, "resume"))

    @operation
    def stop(self, job_id: str) -> Steps[Job]:
        """End a job's training early; what there is gets published."""
        return (yield from self._ask(job_id, "stop"))

    @operation
    def start(self, job_id: str) -> Steps[Job]:
        """Start a job that was made with `auto_start: false`."""
        return (yield from self._ask(job_id, "start"))

    @flow
    def watch(self, job_id: str) -> Flow[Job]:
        """The job whenever it has changed, for the last time in its final state; the service holds each answer back."""
        tag = None
        while True:
            request = Request("GET", f"/jobs/{job_id}")
            if tag:
                request = replace(request, query={"wait": WAIT_SECONDS}, headers={"If-None-Match": tag})
            reply = yield from self._tried(request)
            if reply.status != HTTPStatus.NOT_MODIFIED:
                job = cast("Job", _answer(reply))
                yield Row(job)
                if job["status"] in FINAL:
                    return
            if reply.status == HTTPStatus.NOT_MODIFIED or "ETag" not in reply.headers:
                yield Pause(QUIET_SECONDS)
            tag = reply.headers.get("ETag", tag)

    @flow
    def events(self, job_id: str) -> Flow[Event]:
        """What has happened to a job, oldest first."""
        yield from self._pages(f"/jobs/{job_id}/events", "id", {})

    @flow
    def live_events(self, job_id: str, *, after: int = 0) -> Flow[Event]:
        """What happens to a job, as it happens, until the job has ended. A broken stream goes on where it broke."""
        path, failures = f"/jobs/{job_id}/events", 0
        while True:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
            opened = yield from tried(Open(Request("GET", path, headers=headers)), self.pauses)
            if opened.status == HTTPStatus.NO_CONTENT:
                return
            if not opened.is_success:
                raise ApiProblem.read(opened)
            reader, seen = EventReader(), after
            try:
                while chunk := (yield Read()):
                    for event in _events(reader, chunk):
                        after = event["id"]
                        yield Row(event)
            except Unreachable:
                failures = 0 if after > seen else failures + 1
                if failures > len(self.pauses):
                    raise
            # Whoever ended the stream: the job has ended only when the service says so, with 204.
            yield Pause(QUIET_SECONDS)

    @flow
    def metrics(self, job_id: str, *, after_step: int = -1, points: int | None = None) -> Flow[Metric]:
        """What was measured, by step; with `points`, as so many rows at most, each the mean of a span of steps."""
        asked = {"after_step": after_step} | ({"points": points} if points else {})
        yield from self._pages(f"/jobs/{job_id}/metrics", "step", asked)

    @operation
    def checkpoints(self, job_id: str) -> Steps[list[Checkpoint]]:
        """What a job has published, oldest first, each file with a link."""
        return (yield from self._checkpoints(job_id))

    @operation
    def download(
        self, job_id: str, folder: Path, *, at_once: int = 4, progress: Progress | None = None
    ) -> Steps[list[Path]]:
        """Fetch the newest checkpoint into `folder`, in parts, so many at once.

        A file takes its name only when its SHA-256 is right. After anything that ended it early, call it again: what is
        there already is not sent again.
        """
        checkpoints = yield from self._checkpoints(job_id)
        if not checkpoints:
            job = yield from self._get(f"/jobs/{job_id}")
            gone = ", and its checkpoint has expired" if job["status"] == "succeeded" else ""
            raise ClientError(f"{job_id} has no checkpoint; it is {job['status']}{gone}.")
        wanted = checkpoints[-1]

        def again() -> Steps[Checkpoint]:
            return next(one for one in (yield from self._checkpoints(job_id)) if one["id"] == wanted["id"])

        return (
            yield from downloads.fetch(
                wanted, folder, again=again, at_once=at_once, progress=progress, pauses=self.pauses
            )
        )

    @operation
    def create_key(self, name: str, scope: str = "write") -> Steps[Key]:
        """Make an API key that may `read`, `write` or `admin`; only this answer holds its `secret`."""
        # Sent once: a call that was lost on its way back has made a key that nobody knows.
        request = Request("POST", "/keys", json={"name": name, "scope": scope})
        return cast("Key", _answer((yield from tried(Send(request), ()))))

    @flow
    def api_keys(self) -> Flow[Key]:
        """The tenant's API keys, newest first, revoked ones included."""
        yield from self._pages("/keys", "id", {})

    @operation
    def revoke_key(self, key_id: str) -> Steps[Key]:
        """End an API key at once; one that is revoked already stays so."""
        return cast("Key", (yield from self._call(Request("DELETE", f"/keys/{key_id}"))))

    @flow
    def audit(self) -> Flow[AuditEntry]:
        """Every change made with one of the tenant's keys, newest first."""
        yield from self._pages("/audit", "id", {})

    @operation
    def hub_token(self) -> Steps[HubToken]:
        """Whose token of the model hub the tenant has given, and when; ApiProblem `not_found` where it has none."""
        return cast("HubToken", (yield from self._get("/hub-token")))

    @operation
    def give_hub_token(self, token: str) -> Steps[HubToken]:
        """Give the tenant's token of the model hub, which opens private models and datasets; nothing shows it again."""
        return cast("HubToken", (yield from self._call(Request("PUT", "/hub-token", json={"token": token}))))

    @operation
    def delete_hub_token(self) -> Steps[HubToken]:
        """Have the service forget the tenant's token of the model hub."""
        return cast("HubToken", (yield from self._call(Request("DELETE", "/hub-token"))))

    @operation
    def create_webhook(self, url: str, events: Sequence[str] = ()) -> Steps[Webhook]:
        """Have an address told of these events, or of all; only this answer holds the `secret` that signs."""
        # Sent once, as a key is.
        request = Request("POST", "/webhooks", json={"url": url, "events": list(events)})
        return cast("Webhook", _answer((yield from tried(Send(request), ()))))

    @flow
    def webhooks(self) -> Flow[Webhook]:
        """The caller's webhooks, newest first."""
        yield from map(Row, (yield from self._get("/webhooks"))["data"])

    @operation
    def delete_webhook(self, webhook_id: str) -> Steps[Webhook]:
        """Remove a webhook and its deliveries."""
        return cast("Webhook", (yield from self._call(Request("DELETE", f"/webhooks/{webhook_id}"))))

    @operation
    def rotate_webhook_secret(self, webhook_id: str) -> Steps[Webhook]:
        """Get a new `secret`; the one before signs beside it for a day."""
        request = Request("POST", f"/webhooks/{webhook_id}/rotate")
        return cast("Webhook", _answer((yield from tried(Send(request), ()))))

    @operation
    def disable_webhook(self, webhook_id: str) -> Steps[Webhook]:
        """Deliver nothing until it is enabled again."""
        return cast("Webhook", (yield from self._call(Request("POST", f"/webhooks/{webhook_id}/disable"))))

    @operation
    def enable_webhook(self, webhook_id: str) -> Steps[Webhook]:
        """Take up deliveries again after they were given up."""
        return cast("Webhook", (yield from self._call(Request("POST", f"/webhooks/{webhook_id}/enable"))))

    @operation
    def test_webhook(self, webhook_id: str) -> Steps[Delivery]:
        """Send a message that tells of nothing; the deliveries show what came of it."""
        return cast("Delivery", (yield from self._call(Request("POST", f"/webhooks/{webhook_id}/test"))))

    @flow
    def webhook_deliveries(self, webhook_id: str) -> Flow[Delivery]:
        """What was sent to a webhook or is owed to it, newest first."""
        yield from self._pages(f"/webhooks/{webhook_id}/deliveries", "id", {})

    def _tried(self, request: Request) -> Steps[Reply]:
        return tried(Send(request), self.pauses)

    def _call(self, request: Request) -> Steps[Json]:
        return _answer((yield from self._tried(request)))

    def _get(self, path: str, query: Mapping[str, Any] | None = None) -> Steps[Json]:
        return (yield from self._call(Request("GET", path, query=query or {})))

    def _create(self, path: str, body: Mapping[str, Any], idempotency_key: str | None) -> Steps[Job]:
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return cast("Job", (yield from self._call(Request("POST", path, json=dict(body), headers=headers))))

    def _ask(self, job_id: str, wish: str) -> Steps[Job]:
        return cast("Job", (yield from self._call(Request("POST", f"/jobs/{job_id}/{wish}"))))

    def _checkpoints(self, job_id: str) -> Steps[list[Checkpoint]]:
        return cast("list[Checkpoint]", (yield from self._get(f"/jobs/{job_id}/checkpoints"))["data"])

    def _pages(self, path: str, cursor: str, query: Mapping[str, Any]) -> Flow[Any]:
        """All rows behind a paged route; the next page is named by the last row's `cursor`."""
        name = "after" if cursor == "id" else f"after_{cursor}"
        page = yield from self._get(path, query)
        yield from map(Row, page["data"])
        while page["has_more"]:
            page = yield from self._get(path, {**query, name: page["data"][-1][cursor]})
            yield from map(Row, page["data"])


def _answer(reply: Reply) -> Json:
    """The JSON of a success; ApiProblem for anything else."""
    if not reply.is_success:
        raise ApiProblem.read(reply)
    try:
        answer = json.loads(reply.content)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise Unreachable(f"{reply.url} answers no JSON object. Is that the address of the service?")
    return answer


def _events(reader: EventReader, chunk: bytes) -> Iterator[Event]:
    return (cast("Event", json.loads(data)) for data in reader.feed(chunk))
