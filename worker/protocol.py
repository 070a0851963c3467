"""What a worker and its training process say to each other.

The worker writes `job.json` into a folder and starts the process on it; the process answers with JSON lines on a pipe
and with files in the same folder. SIGTERM asks it to save and end, SIGUSR2 to write the stacks of its threads to its
output, the file `enough` to train no further than it says and to go on with what comes after. Its standard input is its
lifeline: the pipe closes when the worker is gone. Nothing here needs torch.

    job.json, data.jsonl    what to do, and the text
    models/                 what the job repairs, where it is the tenant's alone: the result of another job under that
                            job's id, or a model that the tenant's hub token opened, under its commit
    state/                  the resumable state to go on from, if there is one
    resume/<step>/          resumable states, each announced by `Saved`; the worker removes a folder once it is stored
    enough                  made by the worker when training is to end early: at the step in it, or the next one
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
    """The content of `job.json`: everything that the training process is told. No secret is among it.

    `resume` is the step of the state to go on from, None where there is none.
    """

    spec: JobSpec
    dataset_sha256: str
    resume: int | None
    model_roots: list[Path]
    device: str
    threads: int
    checkpoint_seconds: float
    micro_batch: int | None
    """Windows on the device at a time; None: as the request says."""
    private: Path | None = None
    """The folder of a hub model that the worker has fetched, since the hub gives it to nobody without a token."""

    @classmethod
    def read(cls, folder: Path) -> "Task":
        """From the job's folder."""
        return cls.model_validate_json((folder / TASK).read_bytes())

    def write(self, folder: Path) -> None:
        """Into the job's folder."""
        (folder / TASK).write_text(self.model_dump_json())


class Progressed(_Part):
    """The share 0..1 of the whole job that is done; the optimizer step."""

    type: Literal["progressed"] = "progressed"
    phase: Phase
    progress: float
    step: int


class Measured(_Part):
    """All that was measured at one step."""

    type: Literal["measured"] = "measured"
    step: int
    values: dict[str, float]


class LayerChange(_Part):
    """What an event of the topology did to one linear, or to all: `seft.report.Change`."""

    dropped: int
    grown: int
    reactivated: int
    pruned: int


class TopologyEvolved(LayerChange):
    """An event of the topology: the sums, and each target linear by its name."""

    type: Literal["topology_evolved"] = "topology_evolved"
    step: int
    layers: dict[str, LayerChange]


class Scored(_Part):
    """Perplexities, each once it is known."""

    type: Literal["scored"] = "scored"
    scores: dict[str, float]


class Saved(_Part):
    """`resume/<step>` is complete. Files of earlier states that it has no namesake of still belong to it."""

    type: Literal["saved"] = "saved"
    step: int


class Refused(_Part):
    """Other software left the state of training: it begins anew."""

    type: Literal["refused"] = "refused"
    message: str


class Finished(_Part):
    """`result` is complete and verified. `scores` are final; `measured` was counted from the written file."""

    type: Literal["finished"] = "finished"
    step: int
    scores: dict[str, float]
    measured: dict[str, Any]


class Stopped(_Part):
    """The process ends because it was asked to; what it saved has been announced."""

    type: Literal["stopped"] = "stopped"


class NoDiskSpace(_Part):
    """The process ends because the disk has no room; it was to write `needed` bytes, where that is known."""

    type: Literal["no_room"] = "no_room"
    message: str
    needed: int | None


class Failed(_Part):
    """The process ends with an error that it understands; `user_error` when trying again cannot help."""

    type: Literal["failed"] = "failed"
    user_error: bool
    code: str
    message: str


Message = Progressed | Measured | TopologyEvolved | Scored | Saved | Refused | Finished | Stopped | NoDiskSpace | Failed
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])


def encode(message: Message) -> bytes:
    """One line."""
    return message.model_dump_json().encode() + b"\n"


def decode(line: bytes) -> Message:
    """ValueError when the line is no message."""
    return _MESSAGE.validate_json(line)
