"""The protocol between a worker and its training process. Nothing here needs torch.

The worker writes `job.json` to a folder and starts the process on it. The process sends JSON lines over a pipe and
writes files to the same folder. The worker has four ways to act on it: SIGTERM asks it to save its state and exit.
SIGUSR2 asks it to write the stacks of its threads to its output. The file `enough` asks it to end training early and go
on with what follows. When the worker is gone, its standard input closes and it is killed.

    job.json, data.jsonl    the task and the dataset
    models/                 the model, if it belongs to the tenant: the result of another job, under that job's id, or a
                            model that needs the tenant's hub token, under its commit
    state/                  the state to resume from, if there is one
    resume/<step>/          resumable states, each announced by `Saved`; the worker deletes a folder once it is stored
    enough                  written by the worker to end training early: at the step in it, or at the next step
    result/                 the checkpoint, announced by `Finished`
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from core.specs import JobSpec
from core.states import Phase

TASK, DATA, MODELS, STATE = "job.json", "data.jsonl", "models", "state"
RESUME, ENOUGH, RESULT = "resume", "enough", "result"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Task(_Part):
    """The content of `job.json`: all the input of the training process. It contains no secrets."""

    spec: JobSpec
    dataset_sha256: str
    resume: int | None
    """Step of the state to resume from; None if there is none."""
    model_roots: list[Path]
    device: str
    threads: int
    checkpoint_seconds: float
    micro_batch: int | None
    """Number of windows on the device at a time; None for the value of the request."""
    private: Path | None = None
    """Folder of a private hub model that the worker has downloaded; None for other models."""

    @classmethod
    def read(cls, folder: Path) -> "Task":
        """Read the task from the job's folder."""
        return cls.model_validate_json((folder / TASK).read_bytes())

    def write(self, folder: Path) -> None:
        """Write the task to the job's folder."""
        (folder / TASK).write_text(self.model_dump_json())


class Progressed(_Part):
    """The phase, the fraction (0 to 1) of the whole job that is done, and the optimizer step."""

    type: Literal["progressed"] = "progressed"
    phase: Phase
    progress: float
    step: int


class Measured(_Part):
    """All measurements of one step."""

    type: Literal["measured"] = "measured"
    step: int
    values: dict[str, float]


class LayerChange(_Part):
    """Counts of one topology update in one linear, or their sum over all. See `seft.report.Change`."""

    dropped: int
    grown: int
    reactivated: int
    pruned: int


class TopologyEvolved(LayerChange):
    """A topology update: the sums, and the counts of each target linear by name."""

    type: Literal["topology_evolved"] = "topology_evolved"
    step: int
    layers: dict[str, LayerChange]


class Scored(_Part):
    """Perplexities that are known so far."""

    type: Literal["scored"] = "scored"
    scores: dict[str, float]


class Saved(_Part):
    """`resume/<step>` is complete. Files of earlier states still belong to it unless a new file has the same name."""

    type: Literal["saved"] = "saved"
    step: int


class Refused(_Part):
    """The state was written by incompatible software, so training restarts without it."""

    type: Literal["refused"] = "refused"
    message: str


class Finished(_Part):
    """`result` is complete and verified. `scores` are final; `measured` was computed from the written file."""

    type: Literal["finished"] = "finished"
    step: int
    scores: dict[str, float]
    measured: dict[str, Any]


class Stopped(_Part):
    """The process exits on request. Its last state was announced before."""

    type: Literal["stopped"] = "stopped"


class NoDiskSpace(_Part):
    """The process exits because the disk is full. `needed` is the bytes that it had to write, if known."""

    type: Literal["no_room"] = "no_room"
    message: str
    needed: int | None


class Failed(_Part):
    """The process exits with a known error. `user_error`: a retry cannot help."""

    type: Literal["failed"] = "failed"
    user_error: bool
    code: str
    message: str


Message = Progressed | Measured | TopologyEvolved | Scored | Saved | Refused | Finished | Stopped | NoDiskSpace | Failed
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])


def encode(message: Message) -> bytes:
    """Encode a message as one line."""
    return message.model_dump_json().encode() + b"\n"


def decode(line: bytes) -> Message:
    """Decode a line. Raises ValueError if it is not a message."""
    return _MESSAGE.validate_json(line)
