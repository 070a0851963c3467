"""Types of the responses of the API. A test checks that they have the same fields as the API's schemas."""

from typing import Any, NotRequired, TypedDict

Json = dict[str, Any]


class Failure(TypedDict):
    """Why a job failed. `fault` is `user_error` or `system_error`."""

    fault: str
    code: str
    message: str


class Reason(TypedDict):
    """Why a job is not running."""

    code: str
    message: str


class Job(TypedDict):
    """A job of the service. `queue_position` and `estimate` are only in the response about a single job."""

    id: str
    status: str
    reason: Reason | None
    pausing: bool
    stopping: bool
    phase: str | None
    progress: float
    estimated_finish: str | None
    step: int
    attempt: int
    dtype: str | None
    scores: dict[str, float]
    measured: Json | None
    error: Failure | None
    spec: Json
    created_at: str
    started_at: str | None
    finished_at: str | None
    updated_at: str
    queue_position: NotRequired[int | None]
    estimate: NotRequired["Estimate | None"]


class PhaseMemory(TypedDict):
    """Peak memory of a phase in bytes: on the device, on its host, and in total if both share the same memory."""

    phase: str
    device_bytes: int
    host_bytes: int
    together_bytes: int


class Fit(TypedDict):
    """Whether a job fits a worker. If not, `change` has the settings that make it fit, or None if none do."""

    name: str
    device: str
    device_name: str
    devices: int
    dtype: str
    fits: bool
    phase: str
    needed_bytes: int
    memory_bytes: int
    change: Json | None
    seconds: float | None
    seconds_from: str | None


class Estimate(TypedDict):
    """Estimated memory, time and size of a job. `fits` is None if no worker is alive."""

    architecture: str
    parameters: int
    target_weights: int
    steps: int
    tokens: dict[str, int]
    memory: list[PhaseMemory]
    checkpoint_bytes: int
    disk_bytes: int
    fits: bool | None
    workers: list[Fit]


class Worker(TypedDict):
    """A worker of the service. `job_id` is the job that it runs.

    `job_id` is None if the worker runs no job, or a job of another tenant.
    """

    name: str
    host: str
    device: str
    device_name: str
    devices: int
    memory: int
    disk: int
    bfloat16: bool
    temperature: int | None
    versions: dict[str, str]
    alive: bool
    busy: bool
    job_id: str | None
    started_at: str
    seen_at: str
    consumed_at: str


class Model(TypedDict):
    """A model that a job may name as its model."""

    id: str
    kind: str
    revision: str | None
    architecture: str
    licence: str | None
    context: int | None
    parameters: int
    target_weights: int
    fits_on: list[str]


class SkippedModel(TypedDict):
    """A model that exists but cannot be used, and why."""

    id: str
    reason: str


class ModelPage(TypedDict):
    """A part of the list of models."""

    data: list[Model]
    skipped: list[SkippedModel]


class Event(TypedDict):
    """An event in the history of a job."""

    id: int
    type: str
    attempt: int
    data: Json
    created_at: str


class Metric(TypedDict):
    """Metrics of one training step."""

    step: int
    attempt: int
    values: dict[str, float]


class File(TypedDict):
    """A stored file. `url` is a link to GET it, `head_url` one to ask for its headers by HEAD. Both expire."""

    name: str
    size: int
    sha256: str
    url: str
    head_url: str


class CheckpointFile(File):
    """A file of a checkpoint. `format` is the format that it belongs to, or None if it belongs to every format."""

    format: str | None


class Checkpoint(TypedDict):
    """A published checkpoint of a job."""

    id: str
    step: int
    sha256: str
    scores: dict[str, float]
    files: list[CheckpointFile]
    created_at: str
    expires_at: str | None


class PushError(TypedDict):
    """Why a try to push has failed."""

    code: str
    message: str


class Push(TypedDict):
    """A push of a job's result into a repository of the hub. Its status is `pending`, `running`, `pushed` or `failed`.

    `error` says why the last failed try failed.
    """

    id: str
    job_id: str
    repository: str
    revision: str
    private: bool
    status: str
    commit_url: str | None
    tries: int
    next_try_at: str | None
    error: PushError | None
    requested_at: str
    finished_at: str | None


class Key(TypedDict):
    """An API key. `secret` is only in the response that created the key."""

    id: str
    name: str
    scope: str
    created_at: str
    last_used_at: str | None
    revoked_at: str | None
    secret: NotRequired[str]


class Webhook(TypedDict):
    """An address that receives job events. `secret` is only in the responses that created it."""

    id: str
    url: str
    events: list[str]
    created_at: str
    failing_since: str | None
    disabled_at: str | None
    secret: NotRequired[str]


class Try(TypedDict):
    """One attempt to send a message to a webhook. `status` is None if there was no response."""

    at: str
    status: int | None
    text: str


class Delivery(TypedDict):
    """A message to a webhook, with the attempts to send it."""

    id: str
    type: str
    state: str
    body: str
    log: list[Try]
    due_at: str | None
    created_at: str


class AuditEntry(TypedDict):
    """A change that the audit log recorded."""

    id: int
    key_id: str
    request_id: str
    action: str
    target: str
    created_at: str


class HubToken(TypedDict):
    """The owner and the date of the tenant's token for the Hugging Face hub. Does not contain the token."""

    id: str
    name: str
    created_at: str


class Dataset(TypedDict):
    """An uploaded dataset."""

    id: str
    name: str
    format: str
    bytes: int
    records: int
    skipped: int
    sha256: str
    created_at: str


class Flaw(TypedDict):
    """One error: the field or line, the rule that it breaks, the value given, and how to fix it."""

    param: str
    rule: str
    value: str
    way_out: str


class ImportFailure(TypedDict):
    """Why the import of a dataset failed."""

    code: str
    message: str
    errors: list[Flaw]


class Import(TypedDict):
    """An import of a dataset. Its status is `receiving` (parts of the file), `checking`, `done` or `failed`."""

    id: str
    name: str
    status: str
    source: str | None
    bytes: int | None
    part_bytes: int | None
    parts: int | None
    dataset_id: str | None
    error: ImportFailure | None
    created_at: str


class ImportPart(TypedDict):
    """A part of an upload. `url` is the address for a PUT request, or None if the storage already has the part."""

    number: int
    bytes: int
    received: bool
    url: str | None


class Part(TypedDict):
    """A part of a record's text. `trained` is true if it is trained on."""

    text: str
    trained: bool


class PreviewedRecord(TypedDict):
    """A record as the tokenizer of a model reads it."""

    tokens: int
    trained_tokens: int
    parts: list[Part]
    cut: bool


class Preview(TypedDict):
    """A dataset as the tokenizer of a model reads it. `tokens` is an estimate if `exact` is false."""

    dataset: str
    model: str
    revision: str | None
    records: list[PreviewedRecord]
    counted_records: int
    tokens: int
    trained_tokens: int
    exact: bool


class Version(TypedDict):
    """The version of the service."""

    version: str
