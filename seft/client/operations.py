"""Every operation of the service, written once for the blocking and the asynchronous client."""

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
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
"""Seconds for which the service may delay a response. Proxies close connections that are silent for a minute."""


class Operations:
    """The methods of `Client` and `AsyncClient`, one per operation of the service.

    Each raises ApiProblem if the service rejects the request, and ClientError if the service cannot be reached.
    """

    pauses: Sequence[float]

    @operation
    def version(self) -> Steps[Version]:
        """Return the version of the service. Needs no API key."""
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
        """Upload a file of records: JSONL (plain, gzip or zstd) or Parquet. An error names the invalid lines.

        A large file is sent in parts, `at_once` of them in parallel. Repeat the call to resume an interrupted upload.
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
        """Make the service fetch `s3://bucket/key` or `hf://datasets/owner/name/file`. Returns the new dataset."""
        body = {"source": source, "name": name, "invalid_sample_skip_percentage": invalid_sample_skip_percentage}
        # Not retried: if only the reply was lost, a retry would start a second import.
        started = _answer((yield from tried(Send(Request("POST", "/imports", json=body)), ())))
        return (yield from uploads.imported(started["id"], self._call))

    @operation
    def dataset(self, dataset_id: str) -> Steps[Dataset]:
        """Return a dataset."""
        return cast("Dataset", (yield from self._get(f"/datasets/{dataset_id}")))

    @operation
    def delete_dataset(self, dataset_id: str) -> Steps[Dataset]:
        """Delete a dataset that no unfinished job needs."""
        return cast("Dataset", (yield from self._call(Request("DELETE", f"/datasets/{dataset_id}"))))

    @operation
    def preview_dataset(
        self, dataset_id: str, model: str, *, revision: str | None = None, limit: int = 5
    ) -> Steps[Preview]:
        """Return a dataset's first records as a model's tokenizer reads them, and the number of all tokens."""
        query = {"model": model, "limit": limit} | ({"revision": revision} if revision else {})
        return cast("Preview", (yield from self._get(f"/datasets/{dataset_id}/preview", query)))

    @flow
    def datasets(self) -> Flow[Dataset]:
        """List your datasets, newest first."""
        yield from self._pages("/datasets", "id", {})

    @operation
    def model(self, model_id: str, *, revision: str | None = None) -> Steps[Model]:
        """Return a model that `models` lists, or any model of the Hugging Face hub."""
        query = {} if revision is None else {"revision": revision}
        return cast("Model", (yield from self._get(f"/models/{quote(model_id)}", query)))

    @flow
    def models(self) -> Flow[Model]:
        """List the models that a job may name: local models, models in the hub cache, and results of your jobs."""
        yield from self._pages("/models", "id", {})

    @operation
    def create_job(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Steps[Job]:
        """Create a job. The same idempotency key with the same spec returns the same job."""
        return (yield from self._create("/jobs", spec, idempotency_key))

    @operation
    def estimate_job(self, spec: Mapping[str, Any]) -> Steps[Estimate]:
        """Estimate the memory, time and size of a job, and the workers it fits. The spec needs no dataset."""
        return cast("Estimate", (yield from self._call(Request("POST", "/jobs/estimate", json=dict(spec)))))

    @operation
    def clone_job(
        self, job_id: str, overrides: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> Steps[Job]:
        """Create a copy of a job, with the fields in `overrides` changed. None resets a field to its default."""
        return (yield from self._create(f"/jobs/{job_id}/clone", overrides or {}, idempotency_key))

    @operation
    def job(self, job_id: str) -> Steps[Job]:
        """Return a job."""
        return cast("Job", (yield from self._get(f"/jobs/{job_id}")))

    @flow
    def jobs(
        self, *, status: str | None = None, model: str | None = None, metadata: Mapping[str, str] | None = None
    ) -> Flow[Job]:
        """List your jobs, newest first, filtered by status, model or metadata."""
        pairs = [f"{name}={value}" for name, value in (metadata or {}).items()]
        filters = {"status": status, "model": model, "metadata": pairs}
        yield from self._pages("/jobs", "id", {name: value for name, value in filters.items() if value})

    @operation
    def workers(self) -> Steps[list[Worker]]:
        """List the workers of the service."""
        return cast("list[Worker]", (yield from self._get("/workers"))["data"])

    @operation
    def cancel(self, job_id: str) -> Steps[Job]:
        """Cancel a job. Idempotent."""
        return (yield from self._act(job_id, "cancel"))

    @operation
    def pause(self, job_id: str) -> Steps[Job]:
        """Pause a job. A running job first saves its state, and is `pausing` until then. Idempotent."""
        return (yield from self._act(job_id, "pause"))

    @operation
    def resume(self, job_id: str) -> Steps[Job]:
        """Resume a paused job. Idempotent."""
        return (yield from self._act(job_id, "resume"))

    @operation
    def stop(self, job_id: str) -> Steps[Job]:
        """End the training of a job early and publish its current model. Idempotent."""
        return (yield from self._act(job_id, "stop"))

    @operation
    def start(self, job_id: str) -> Steps[Job]:
        """Start a job that was created with `auto_start: false`. Idempotent."""
        return (yield from self._act(job_id, "start"))

    @flow
    def watch(self, job_id: str) -> Flow[Job]:
        """Yield the job now and after each change, until it has ended."""
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
        """List the events of a job, oldest first."""
        yield from self._pages(f"/jobs/{job_id}/events", "id", {})

    @flow
    def live_events(self, job_id: str, *, after: int = 0) -> Flow[Event]:
        """Yield the events of a job as they happen, until it has ended. `after` is the `id` of the last known event."""
        path, failures = f"/jobs/{job_id}/events", 0
        while True:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
            opened = yield from tried(Open(Request("GET", path, headers=headers)), self.pauses)
            if opened.status == HTTPStatus.NO_CONTENT:
                return
            if not opened.is_success:
                raise ApiProblem.read(opened)
            reader, before = EventReader(), after
            try:
                while chunk := (yield Read()):
                    for event in _events(reader, chunk):
                        after = event["id"]
                        yield Row(event)
            except Unreachable:
                failures = 0 if after > before else failures + 1
                if failures > len(self.pauses):
                    raise
            # The end of a stream does not mean the end of the job: for that the service answers 204.
            yield Pause(QUIET_SECONDS)

    @flow
    def metrics(self, job_id: str, *, after_step: int = -1, points: int | None = None) -> Flow[Metric]:
        """List the metrics of a job by step. With `points`, at most that many rows, each the mean of several steps."""
        query = {"after_step": after_step} | ({"points": points} if points else {})
        yield from self._pages(f"/jobs/{job_id}/metrics", "step", query)

    @operation
    def checkpoints(self, job_id: str) -> Steps[list[Checkpoint]]:
        """List the published checkpoints of a job, oldest first, with a download link to each file."""
        return (yield from self._checkpoints(job_id))

    @operation
    def download(
        self, job_id: str, folder: Path, *, at_once: int = 4, progress: Progress | None = None
    ) -> Steps[list[Path]]:
        """Download the newest checkpoint to `folder`, `at_once` parts in parallel. Returns the paths of the files.

        A file gets its final name only after its SHA-256 matched. Repeat the call to resume an interrupted download:
        finished parts are not fetched again.
        """
        checkpoints = yield from self._checkpoints(job_id)
        if not checkpoints:
            job = yield from self._get(f"/jobs/{job_id}")
            gone = ", and its checkpoint has expired" if job["status"] == "succeeded" else ""
            raise ClientError(f"{job_id} has no checkpoint; it is {job['status']}{gone}. Choose a job that has one.")
        newest = checkpoints[-1]

        def again() -> Steps[Checkpoint]:
            return next(one for one in (yield from self._checkpoints(job_id)) if one["id"] == newest["id"])

        fetch = partial(downloads.fetch, again=again, at_once=at_once, progress=progress, pauses=self.pauses)
        return (yield from fetch(newest, folder))

    @operation
    def create_key(self, name: str, scope: str = "write") -> Steps[Key]:
        """Create an API key of scope `read`, `write` or `admin`. Only this response has its `secret`."""
        # Not retried: if only the reply was lost, a retry would create a second key.
        request = Request("POST", "/keys", json={"name": name, "scope": scope})
        return cast("Key", _answer((yield from tried(Send(request), ()))))

    @flow
    def api_keys(self) -> Flow[Key]:
        """List the tenant's API keys, newest first, including revoked keys."""
        yield from self._pages("/keys", "id", {})

    @operation
    def revoke_key(self, key_id: str) -> Steps[Key]:
        """Revoke an API key immediately. Idempotent."""
        return cast("Key", (yield from self._call(Request("DELETE", f"/keys/{key_id}"))))

    @flow
    def audit(self) -> Flow[AuditEntry]:
        """List every change that was made with one of the tenant's keys, newest first."""
        yield from self._pages("/audit", "id", {})

    @operation
    def hub_token(self) -> Steps[HubToken]:
        """Return owner and date of the tenant's hub token. Raises ApiProblem `not_found` if none is stored."""
        return cast("HubToken", (yield from self._get("/hub-token")))

    @operation
    def give_hub_token(self, token: str) -> Steps[HubToken]:
        """Store the tenant's hub token, which gives access to private models and datasets. It is never shown again."""
        return cast("HubToken", (yield from self._call(Request("PUT", "/hub-token", json={"token": token}))))

    @operation
    def delete_hub_token(self) -> Steps[HubToken]:
        """Delete the tenant's token for the Hugging Face hub."""
        return cast("HubToken", (yield from self._call(Request("DELETE", "/hub-token"))))

    @operation
    def create_webhook(self, url: str, events: Sequence[str] = ()) -> Steps[Webhook]:
        """Create a webhook for these event types, or for all. Only this response contains its signing `secret`."""
        # Not retried, like the creation of a key.
        request = Request("POST", "/webhooks", json={"url": url, "events": list(events)})
        return cast("Webhook", _answer((yield from tried(Send(request), ()))))

    @flow
    def webhooks(self) -> Flow[Webhook]:
        """List your webhooks, newest first."""
        yield from map(Row, (yield from self._get("/webhooks"))["data"])

    @operation
    def delete_webhook(self, webhook_id: str) -> Steps[Webhook]:
        """Delete a webhook and its deliveries."""
        return cast("Webhook", (yield from self._call(Request("DELETE", f"/webhooks/{webhook_id}"))))

    @operation
    def rotate_webhook_secret(self, webhook_id: str) -> Steps[Webhook]:
        """Create a new `secret`. For one day messages carry signatures of the old and the new secret."""
        request = Request("POST", f"/webhooks/{webhook_id}/rotate")
        return cast("Webhook", _answer((yield from tried(Send(request), ()))))

    @operation
    def disable_webhook(self, webhook_id: str) -> Steps[Webhook]:
        """Stop deliveries until the webhook is enabled again. Idempotent."""
        return cast("Webhook", (yield from self._call(Request("POST", f"/webhooks/{webhook_id}/disable"))))

    @operation
    def enable_webhook(self, webhook_id: str) -> Steps[Webhook]:
        """Resume deliveries of a disabled webhook. Idempotent."""
        return cast("Webhook", (yield from self._call(Request("POST", f"/webhooks/{webhook_id}/enable"))))

    @operation
    def test_webhook(self, webhook_id: str) -> Steps[Delivery]:
        """Send a test message to a webhook. Its result appears in `webhook_deliveries`."""
        return cast("Delivery", (yield from self._call(Request("POST", f"/webhooks/{webhook_id}/test"))))

    @flow
    def webhook_deliveries(self, webhook_id: str) -> Flow[Delivery]:
        """List the sent and pending messages of a webhook, newest first."""
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

    def _act(self, job_id: str, action: str) -> Steps[Job]:
        return cast("Job", (yield from self._call(Request("POST", f"/jobs/{job_id}/{action}"))))

    def _checkpoints(self, job_id: str) -> Steps[list[Checkpoint]]:
        return cast("list[Checkpoint]", (yield from self._get(f"/jobs/{job_id}/checkpoints"))["data"])

    def _pages(self, path: str, cursor: str, query: Mapping[str, Any]) -> Flow[Any]:
        """Yield all rows of a paged route. `next` of a page, or `cursor` of its last row, selects the next page."""
        name = "after" if cursor == "id" else f"after_{cursor}"
        page = yield from self._get(path, query)
        yield from map(Row, page["data"])
        while page["has_more"]:
            page = yield from self._get(path, {**query, name: page.get("next") or page["data"][-1][cursor]})
            yield from map(Row, page["data"])


def _answer(reply: Reply) -> Json:
    """Return the JSON of a successful reply. Raises ApiProblem if the reply is not successful."""
    if not reply.is_success:
        raise ApiProblem.read(reply)
    try:
        answer = json.loads(reply.content)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise Unreachable(
            f"{reply.url} did not answer with a JSON object. Check that SEFT_URL is the address of the service."
        )
    return answer


def _events(reader: EventReader, chunk: bytes) -> Iterator[Event]:
    return (cast("Event", json.loads(data)) for data in reader.feed(chunk))
