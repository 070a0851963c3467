"""The protocol between a worker and its training process. Nothing here needs torch.

The worker writes `job.json` to a folder and starts the process with this folder. The process sends messages over a
pipe, each as one line of JSON, and writes files to the same folder. Files of formats other than `dense` are the
exception: after the message `Storing`, the process sends them over a Unix socket, and the worker stores them.

SIGTERM asks the process to save its state and exit. SIGUSR2 asks it to write the stacks of its threads to its output.
The file `end_training` asks it to end training early and then run the remaining stages. When the worker ends, standard
input of the process closes and the process is killed.

    job.json, data.jsonl    the task and the dataset
    retain.jsonl            the dataset to retain, if there is one
    held_out.jsonl          the dataset to evaluate on, if it is not a part of the dataset
    models/                 the model, if it belongs to the tenant: the result of another job, under that job's id, or a
                            model that needs the tenant's hub token, under its commit
    state/                  the state to resume from, if there is one; deleted after the first step
    resume/<step>/          resumable states, each announced by `Saved`; the worker deletes a folder once it is stored
    end_training            written by the worker to end training early: at the step in the file, or at the next step
    result/                 the checkpoint without the files of other formats, announced by `Finished`
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, TypeAdapter

from core.estimate.speed import LONGEST_SECONDS, Speed
from core.specs import JobSpec
from core.states import LARGEST_NEED, Phase
from seft.report import Evolved
from seft.storable import printable, shortened

MAX_MESSAGE_BYTES = 64 << 20
"""Largest line that a worker reads. A message about a topology event has about 100 bytes per pruned layer, and a model
of many experts has tens of thousands of layers."""
MAX_TEXT_CHARACTERS, MAX_VALUES = 10_000, 100
MAX_REQUEST_BYTES, MAX_BLOCK_BYTES = 1 << 16, 8 << 20
"""Largest request about a file of a format, and largest number of its bytes in one message, in both directions."""
TASK, MODELS, STATE = "job.json", "models", "state"
DATA, RETAIN_DATA, HELD_OUT_DATA = "data.jsonl", "retain.jsonl", "held_out.jsonl"
RESUME, END_TRAINING, RESULT = "resume", "end_training", "result"


def _text(value: object) -> object:
    return printable(shortened(value, MAX_TEXT_CHARACTERS)) if isinstance(value, str) else value


Text = Annotated[str, BeforeValidator(_text)]
"""A text that a model file can have influenced. Characters that cannot be sent or stored are replaced.

It has at most `MAX_TEXT_CHARACTERS`, because an error of a job is stored and sent in several places.
"""


Step = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""Number of an optimizer step. The database stores it in 32 bits."""


Numbers = Annotated[dict[Annotated[str, Field(max_length=MAX_VALUES)], FiniteFloat], Field(max_length=MAX_VALUES)]
"""Scores or metrics by name. They are small, because jobs of all tenants are read together."""


def _small(value: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(value, allow_nan=False)) > MAX_TEXT_CHARACTERS:
        raise ValueError(f"must have at most {MAX_TEXT_CHARACTERS} characters as JSON")
    return value


def _with_step(event: Evolved) -> Evolved:
    _STEP.validate_python(event.step)
    return event


_STEP: TypeAdapter[int] = TypeAdapter(Step)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Task(_Part):
    """The content of `job.json`: everything that the training process needs to know. It contains no secrets."""

    spec: JobSpec
    dataset_sha256: str
    resume: int | None
    """Step of the saved state to resume from, or None to start from the beginning."""
    model_roots: list[Path]
    device: str
    threads: int
    checkpoint_seconds: float
    micro_batch: int | None
    """Number of sequences on the device at a time, or None to use the value of the request."""
    hub_cache_bytes: int = 0
    """Maximum size of the cache of hub models; 0 means no limit."""
    downloaded: Path | None = None
    """Folder of a hub model that was downloaded, named after its commit. Otherwise None. The worker downloads a model
    that requires the tenant's token. `worker.child` downloads any other hub model and then sets this field."""
    retained_sha256: str | None = None
    """SHA-256 of the dataset to retain, or None if the job retains no dataset."""
    speed: Speed = Speed()
    """What is known about the speed of the device."""
    held_out_sha256: str | None = None
    """SHA-256 of the dataset to evaluate on, or None if it is a part of the dataset."""
    names: dict[str, str] = {}
    """Names that the users gave their datasets, by the names of the files in the job's folder."""

    @classmethod
    def read(cls, folder: Path) -> "Task":
        """Read the task from the job's folder."""
        return cls.model_validate_json((folder / TASK).read_bytes())

    def write(self, folder: Path) -> None:
        """Write the task to the job's folder."""
        (folder / TASK).write_text(self.model_dump_json())


class Progressed(_Part):
    """Message: the phase, the fraction (0 to 1) of the whole job that is done, and the optimizer step.

    `remaining` are the seconds until the job has ended, or None if they are unknown.
    """

    type: Literal["progressed"] = "progressed"
    phase: Phase
    progress: float = Field(ge=0, le=1, allow_inf_nan=False)
    step: Step
    remaining: float | None = Field(default=None, ge=0, le=LONGEST_SECONDS, allow_inf_nan=False)


class Reading(_Part):
    """Message: the process reads the datasets with the model's tokenizer, and has read this number of records."""

    type: Literal["reading"] = "reading"
    records: int


class Measured(_Part):
    """Message: all metrics that were measured at one step."""

    type: Literal["measured"] = "measured"
    step: Step
    values: Numbers


class TopologyEvolved(_Part):
    """Message: a topology event."""

    type: Literal["topology_evolved"] = "topology_evolved"
    event: Annotated[Evolved, AfterValidator(_with_step)]


class Scored(_Part):
    """Message: all perplexities that have been measured so far."""

    type: Literal["scored"] = "scored"
    scores: Numbers


class Saved(_Part):
    """Message: the state in `resume/<step>` is complete.

    Files of earlier states still belong to the state, unless it has a new file with the same name.
    """

    type: Literal["saved"] = "saved"
    step: Step


class Refused(_Part):
    """Message: incompatible software wrote the saved training state, so training restarts from step 0."""

    type: Literal["refused"] = "refused"
    message: Text


class Storing(_Part):
    """Message: from now on, the process sends requests about files of formats."""

    type: Literal["storing"] = "storing"


class Finished(_Part):
    """Message: the checkpoint in `result` is complete and verified, with the files of formats that are stored.

    `scores` are the final scores. `measured` has the numbers of weights and zeros in the checkpoint, and the number of
    pruned weights that are nonzero again.
    """

    type: Literal["finished"] = "finished"
    step: Step
    scores: Numbers
    measured: Annotated[dict[str, Any], AfterValidator(_small)]


class Stopped(_Part):
    """Message: the process exits because it was asked to stop. If it has saved its state, `Saved` came before."""

    type: Literal["stopped"] = "stopped"


class NoDiskSpace(_Part):
    """Message: the process exits because a disk is full.

    `needed` are the bytes that it had to write to the job's folder: None if unknown, and 0 if the hub cache is full.
    """

    type: Literal["no_disk_space"] = "no_disk_space"
    message: Text
    needed: Annotated[int, Field(ge=0, le=LARGEST_NEED)] | None


class Failed(_Part):
    """Message: the process exits with a known error. If `user_error` is true, a retry cannot help.

    `of_host` is true if the machine ran out of memory, and false if the device did.
    """

    type: Literal["failed"] = "failed"
    user_error: bool
    code: Text
    message: Text
    of_host: bool = False


Message = (
    Progressed
    | Reading
    | Measured
    | TopologyEvolved
    | Scored
    | Saved
    | Refused
    | Storing
    | Finished
    | Stopped
    | NoDiskSpace
    | Failed
)
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])


class WriteFile(_Part):
    """Request: store a file. Its bytes follow in messages. An empty message ends the file.

    The reply is the entry of the file in the manifest.
    """

    type: Literal["write"] = "write"
    name: str


class MeasureFile(_Part):
    """Request: the size in bytes of a stored file. The reply is this number as text."""

    type: Literal["measure"] = "measure"
    name: str


class ReadFile(_Part):
    """Request: `size` bytes of a stored file from offset `begin`. The reply is these bytes."""

    type: Literal["read"] = "read"
    name: str
    begin: Annotated[int, Field(ge=0)]
    size: Annotated[int, Field(gt=0, le=MAX_BLOCK_BYTES)]


Request = WriteFile | MeasureFile | ReadFile
_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="type")])


def encode(message: Message | Request) -> bytes:
    """Encode a message or a request as one line of JSON."""
    return message.model_dump_json().encode() + b"\n"


def decode(line: bytes) -> Message:
    """Decode a line of JSON to a message. Raises ValueError if the line is not a message."""
    return _MESSAGE.validate_json(line)


def decode_request(content: bytes) -> Request:
    """Decode a request. Raises ValueError if `content` is not a request."""
    return _REQUEST.validate_json(content)
