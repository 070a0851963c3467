"""Every operation of the service, written once for the blocking and the asynchronous client."""

import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

from seft.client import downloads, uploads
from seft.client.administration import Administration
from seft.client.calls import answer, path_of
from seft.client.errors import ApiProblem, ClientError, Unreachable
from seft.client.events import EventReader
from seft.client.responses import (
    Checkpoint,
    CheckpointFile,
    Dataset,
    Estimate,
    Event,
    File,
    Import,
    Job,
    Metric,
    Model,
    ModelPage,
    Preview,
    Push,
    Version,
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
    Request,
    Row,
    Steps,
    flow,
    operation,
)

FINAL = ("succeeded", "failed", "cancelled")
AnyPath = str | os.PathLike[str]
WAIT_SECONDS = 30
"""Seconds for which the service may delay a response. Proxies close connections that are silent for a minute."""


class Operations(Administration):
    """The methods of `Client` and `AsyncClient`, one per operation of the service.

    Each raises ApiProblem if the service rejects the request, and ClientError if the service cannot be reached.
    """

    @operation
    def version(self) -> Steps[Version]:
        """Return the version of the service. Needs no API key."""
        return cast("Version", (yield from self._call(Request("GET", "/version"))))

    @operation
    def upload_dataset(
        self,
        path: AnyPath,
        *,
        invalid_sample_skip_percentage: float = 0.0,
        at_once: int = 4,
        progress: Progress | None = None,
    ) -> Steps[Dataset]:
        """Upload a file of records: JSONL (plain, gzip or zstd) or Parquet. An error names the invalid lines.

        A file that is too large for one request is sent in parts, `at_once` of them in parallel. Repeat the call to
        resume an interrupted upload.
        """
        path, skip = Path(path), {"invalid_sample_skip_percentage": invalid_sample_skip_percentage}
        uploads.require_file(path)
        if path.stat().st_size <= uploads.PARTS_FROM:
            request = Request("POST", "/datasets", query=skip, file=path, progress=progress)
            try:
                return cast("Dataset", (yield from self._call(request)))
            except ApiProblem as problem:  # the service may take less in one request
                if problem.code != "too_large":
                    raise
        return (
            yield from uploads.send(path, skip, call=self._call, at_once=at_once, progress=progress, pauses=self.pauses)
        )

    @operation
    def import_dataset(
        self, source: str, *, name: str | None = None, invalid_sample_skip_percentage: float = 0.0
    ) -> Steps[Dataset]:
        """Make the service fetch `s3://bucket/key` or `hf://datasets/owner/name/file`. Returns the new dataset."""
        started = yield from self._start_import(source, name, invalid_sample_skip_percentage)
        return (yield from uploads.imported(started["id"], self._call))

    @operation
    def start_import(
        self, source: str, *, name: str | None = None, invalid_sample_skip_percentage: float = 0.0
    ) -> Steps[Import]:
        """Start what `import_dataset` does, without waiting. Returns the import, whose `id` is for `finish_import`."""
        return (yield from self._start_import(source, name, invalid_sample_skip_percentage))

    @operation
    def finish_import(self, import_id: str) -> Steps[Dataset]:
        """Wait until an import has ended. Returns the new dataset."""
        return (yield from uploads.imported(import_id, self._call))

    @operation
    def dataset(self, dataset_id: str) -> Steps[Dataset]:
        """Return a dataset."""
        return cast("Dataset", (yield from self._get(path_of("datasets", dataset_id))))

    @operation
    def delete_dataset(self, dataset_id: str) -> Steps[Dataset]:
        """Delete a dataset that no unfinished job needs."""
        return cast("Dataset", (yield from self._delete(path_of("datasets", dataset_id))))

    @operation
    def download_dataset(
        self, dataset_id: str, path: AnyPath, *, at_once: int = 4, progress: Progress | None = None
    ) -> Steps[Path]:
        """Download the records of a dataset to the file `path`, as plain JSONL. Returns the path.

        The file gets its name after the SHA-256 matched. Repeat the call to resume an interrupted download. A `path`
        with another file is a ClientError.
        """
        target = Path(path)

        def again() -> Steps[list[File]]:
            file = cast("File", (yield from self._get(path_of("datasets", dataset_id, "file"))))
            file["name"] = target.name
            return [file]

        fetched = downloads.fetch(
            target.parent, again, owner=dataset_id, at_once=at_once, progress=progress, pauses=self.pauses
        )
        return (yield from fetched)[0]

    @operation
    def preview_dataset(
        self, dataset_id: str, model: str, *, revision: str | None = None, limit: int = 5
    ) -> Steps[Preview]:
        """Return a dataset's first records as a model's tokenizer reads them, and the number of all tokens."""
        query = {"model": model, "limit": limit} | ({"revision": revision} if revision else {})
        return cast("Preview", (yield from self._get(path_of("datasets", dataset_id, "preview"), query)))

    @flow
    def datasets(self) -> Flow[Dataset]:
        """List your datasets, newest first."""
        yield from self._pages("/datasets", "id", {})

    @operation
    def model(self, model_id: str, *, revision: str | None = None) -> Steps[Model]:
        """Return a model that `models` lists, or any model of the Hugging Face hub."""
        query = {} if revision is None else {"revision": revision}
        return cast("Model", (yield from self._get(path_of("models", model_id, safe="/"), query)))

    @flow
    def models(self) -> Flow[Model]:
        """List the models that a job may name: local models, models in the hub cache, and results of your jobs."""
        yield from self._pages("/models", "id", {})

    @flow
    def model_pages(self) -> Flow[ModelPage]:
        """List the pages of `models`, which also name the models that cannot be used, such as a damaged one."""
        yield from self._pages("/models", "id", {}, whole=True)

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
        """Create a copy of a job, with the fields in `overrides` changed. The value `None` resets a field."""
        return (yield from self._create(path_of("jobs", job_id, "clone"), overrides or {}, idempotency_key))

    @operation
    def job(self, job_id: str) -> Steps[Job]:
        """Return a job."""
        return cast("Job", (yield from self._get(path_of("jobs", job_id))))

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
        """Pause a job. A running job first saves its state, and its field `pausing` is true until then. Idempotent."""
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

    @operation
    def push(self, job_id: str, repository: str, *, private: bool = True, revision: str = "main") -> Steps[Push]:
        """Push the result of a job into a repository of the hub, or push it again. Does nothing while this push runs.

        `private` is for a repository that the push creates, and `revision` is a branch.
        """
        body = {"repository": repository, "private": private, "revision": revision}
        return cast("Push", (yield from self._call(Request("POST", path_of("jobs", job_id, "push"), json=body))))

    @operation
    def pushes(self, job_id: str) -> Steps[list[Push]]:
        """List the pushes of a job, the newest request first: status, address of the commit, error."""
        return cast("list[Push]", (yield from self._get(path_of("jobs", job_id, "pushes")))["data"])

    @operation
    def delete_job(self, job_id: str) -> Steps[Job]:
        """Delete a job that has ended, with its events, metrics and checkpoints. Returns its last state."""
        return cast("Job", (yield from self._delete(path_of("jobs", job_id))))

    @flow
    def watch(self, job_id: str) -> Flow[Job]:
        """Yield the job now and after each change, until it has ended."""
        tag = None
        while True:
            request = Request("GET", path_of("jobs", job_id))
            if tag:
                request = replace(request, query={"wait": WAIT_SECONDS}, headers={"If-None-Match": tag})
            reply = yield from self._tried(request)
            if reply.status != HTTPStatus.NOT_MODIFIED:
                job = cast("Job", answer(reply))
                yield Row(job)
                if job["status"] in FINAL:
                    return
            if reply.status == HTTPStatus.NOT_MODIFIED or "ETag" not in reply.headers:
                yield Pause(QUIET_SECONDS)
            tag = reply.headers.get("ETag", tag)

    @flow
    def events(self, job_id: str) -> Flow[Event]:
        """List the events of a job, oldest first."""
        yield from self._pages(path_of("jobs", job_id, "events"), "id", {})

    @flow
    def live_events(self, job_id: str, *, after: int = 0) -> Flow[Event]:
        """Yield the events of a job as they happen, until it has ended. `after` is the `id` of the last known event."""
        path, failures = path_of("jobs", job_id, "events"), 0
        while True:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
            opened = yield from tried(Open(Request("GET", path, headers=headers)), self.pauses)
            if opened.status == HTTPStatus.NO_CONTENT:
                return
            if not opened.is_success:
                raise ApiProblem.read(opened)
            if not opened.headers.get("Content-Type", "").startswith("text/event-stream"):
                raise Unreachable(
                    f"{opened.url} did not answer with a stream of events."
                    " Check that SEFT_URL is the address of the service."
                )
            reader, answered = EventReader(), False
            try:
                while chunk := (yield Read()):
                    failures, answered = 0, True  # a comment is an answer too
                    for event in _events(reader, chunk):
                        after = event["id"]
                        yield Row(event)
            except Unreachable:
                failures += not answered
                if failures > len(self.pauses):
                    raise
            # The end of a stream does not mean the end of the job: for that the service answers 204.
            yield Pause(QUIET_SECONDS)

    @flow
    def metrics(self, job_id: str, *, after_step: int = -1, points: int | None = None) -> Flow[Metric]:
        """List the metrics of a job by step. With `points`, at most that many rows, each the mean of several steps."""
        query = {"after_step": after_step} | ({"points": points} if points else {})
        yield from self._pages(path_of("jobs", job_id, "metrics"), "step", query)

    @operation
    def checkpoints(self, job_id: str) -> Steps[list[Checkpoint]]:
        """List the published checkpoints of a job, oldest first, with a download link to each file."""
        return (yield from self._checkpoints(job_id))

    @operation
    def download(
        self,
        job_id: str,
        folder: AnyPath,
        *,
        format: str | None = None,  # noqa: A002 (its name in the API)
        at_once: int = 4,
        progress: Progress | None = None,
    ) -> Steps[list[Path]]:
        """Download the newest checkpoint to `folder`, `at_once` parts in parallel. Returns the paths of the files.

        With `format`, only the files of this format are downloaded, and those that belong to all formats.
        A file gets its final name only after its SHA-256 matched. Repeat the call to resume an interrupted download:
        finished parts are not fetched again. A folder with another file of the same name is a ClientError.
        """
        checkpoints = yield from self._checkpoints(job_id)
        if not checkpoints:
            job = yield from self._get(path_of("jobs", job_id))
            gone = ", and its checkpoint has expired" if job["status"] == "succeeded" else ""
            raise ClientError(f"{job_id} has no checkpoint; it is {job['status']}{gone}. Choose a job that has one.")
        newest = checkpoints[-1]
        files = _of_format(newest, format) if format else newest["files"]
        target = Path(folder)

        def again() -> Steps[Sequence[File]]:
            for one in (yield from self._checkpoints(job_id)):
                if one["id"] == newest["id"]:
                    return one["files"]
            raise ClientError(f"{newest['id']} was deleted during its download. Choose a job that has a checkpoint.")

        return (
            yield from downloads.fetch(
                target, again, files, owner=newest["id"], at_once=at_once, progress=progress, pauses=self.pauses
            )
        )

    def _start_import(self, source: str, name: str | None, skip: float) -> Steps[Import]:
        body = {"source": source, "name": name, "invalid_sample_skip_percentage": skip}
        return cast("Import", (yield from self._call_once(Request("POST", "/imports", json=body))))

    def _create(self, path: str, body: Mapping[str, Any], idempotency_key: str | None) -> Steps[Job]:
        if idempotency_key == "":
            raise ClientError("An idempotency key must not be empty; it is ''. Give another one, or leave it out.")
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return cast("Job", (yield from self._call(Request("POST", path, json=dict(body), headers=headers))))

    def _act(self, job_id: str, action: str) -> Steps[Job]:
        return cast("Job", (yield from self._call(Request("POST", path_of("jobs", job_id, action)))))

    def _checkpoints(self, job_id: str) -> Steps[list[Checkpoint]]:
        return cast("list[Checkpoint]", (yield from self._get(path_of("jobs", job_id, "checkpoints")))["data"])


def _of_format(checkpoint: Checkpoint, format_: str) -> list[CheckpointFile]:
    """Return the files of one format, and those that belong to all formats. Raises ClientError if it has none."""
    formats = dict.fromkeys(filter(None, (file.get("format") for file in checkpoint["files"])))
    if format_ not in formats:
        raise ClientError(f"{checkpoint['id']} has the formats {', '.join(formats)}; it has no {format_}.")
    return [file for file in checkpoint["files"] if file.get("format") in (format_, None)]


def _events(reader: EventReader, chunk: bytes) -> Iterator[Event]:
    return (cast("Event", json.loads(data)) for data in reader.feed(chunk))
