"""Metadata of a checkpoint: how it was made (`Facts`), and the files `sparsity.json` and `manifest.json`.

Both files are canonical JSON: equal content gives equal bytes. They contain no time, host name, job id or absolute
path.
"""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

from pydantic import Field, TypeAdapter, ValidationError

import seft
from seft.checkpoint.counts import Sparsity
from seft.config import EvaluateConfig, PruneConfig, RepairConfig
from seft.errors import ConfigError, RecordFileError, VerifyError
from seft.models.source import Kind, ModelSource
from seft.models.terms import Terms

SPARSITY = "sparsity.json"
MANIFEST = "manifest.json"
Role = Literal["calibration", "dataset", "held_out", "retained"]
"""What a text is for."""


@dataclass(frozen=True, slots=True)
class Base:
    """The dense model that was pruned. `reference` is a hub id, or the name of a file or folder without its path.

    `files` are the SHA-256 of the files that were read: weights, configuration and tokenizer. It is empty if an older
    version of this software wrote it.
    """

    reference: str
    kind: Kind
    revision: str | None
    licence: str | None
    licence_name: str | None = None
    licence_link: str | None = None
    languages: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, source: ModelSource, terms: Terms, files: dict[str, str]) -> "Base":
        """Return what may be published of a model source: everything except its path."""
        name = source.reference if source.kind is Kind.HUB else Path(source.reference).resolve().name
        return cls(name, source.kind, source.revision, source.licence, *terms, files)


@dataclass(frozen=True, slots=True)
class TextInfo:
    """A text that was read: the name of its file without the path, or None if unknown, and its size.

    `records` is the number of its records, and `tokens` the number of their tokens. For retained text, both describe
    its windows.
    """

    name: str | None
    records: int
    tokens: int


MAX_THREADS = 1 << 12
"""Largest number of threads that a record may have. torch gets this number from the file."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a stage ran on. Each value may change the last bits of the weights.

    `hardware` is the name of the GPU, or the vector instructions of the CPU that torch uses. `threads` is the number of
    CPU threads of each process. `deterministic` says whether torch was asked for deterministic algorithms. `processes`
    is the number of processes that repaired the model, and 1 for other stages.
    """

    device: Literal["cpu", "cuda"]
    hardware: str
    dtype: Literal["float32", "bfloat16", "float16"]
    threads: Annotated[int, Field(gt=0, le=MAX_THREADS)]
    deterministic: bool
    processes: Annotated[int, Field(gt=0)] = 1


@dataclass(frozen=True, slots=True)
class Conditions:
    """What an attempt of a job ran with. Each value may change the last bits of the weights.

    `micro_batch` is None if the job has no repair. `versions` is the result of `versions()`.
    """

    machine: Machine
    micro_batch: int | None
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Facts:
    """How a checkpoint was made. `repair` is None if the model was only pruned.

    A hash is None if no text was read. `retained_sha256` is also None if the dense model wrote the text to retain, and
    `held_out_sha256` is None if the text to evaluate on is a part of the dataset.
    `scores` are perplexities with the keys dense, pruned and repaired, measured with the settings `evaluate`, and with
    the keys `dense_retained` and so on if text was retained. The dense scores are measured on the original weights, the
    others on weights rounded as they are exported. `grown_zeros` is the number of weights that pruning set to zero and
    that are nonzero now. `stopped_at` is the last step of a training that ended early. `kept_at` is the step whose
    weights were kept because no later ones were better. `peak_rate` is the peak learning rate; None if an older version
    of this software wrote the file. `teacher` is the dense model that repair distilled from. If `zeros_found` is True,
    another tool pruned the model, and only the sparsity and the pattern of `prune` are known.

    `texts` describes the texts by their roles. `held_out_share` is the fraction of the dataset's records that were not
    trained on but evaluated on. `pruned_on` and `repaired_on` are None if the stage did not run, or if an older version
    of this software wrote the file. `attempts` are the conditions of a job's attempts, in order, if they were not all
    the same. The first attempt pruned the model, the last wrote it.
    """

    base: Base
    prune: PruneConfig
    repair: RepairConfig | None
    scores: dict[str, float]
    evaluate: EvaluateConfig | None
    grown_zeros: int
    calibration_sha256: str | None
    dataset_sha256: str | None
    stopped_at: int | None = None
    kept_at: int | None = None
    peak_rate: float | None = None
    teacher: Base | None = None
    retained_sha256: str | None = None
    held_out_sha256: str | None = None
    zeros_found: bool = False
    texts: dict[Role, TextInfo] = field(default_factory=dict)
    held_out_share: float | None = None
    pruned_on: Machine | None = None
    repaired_on: Machine | None = None
    attempts: tuple[Conditions, ...] = ()

    @property
    def text_hashes(self) -> dict[Role, str | None]:
        """SHA-256 of the texts by their roles."""
        return {
            "calibration": self.calibration_sha256,
            "dataset": self.dataset_sha256,
            "held_out": self.held_out_sha256,
            "retained": self.retained_sha256,
        }

    @property
    def pruned_by(self) -> str:
        """What pruned the model, with the pattern, for example `wanda (2:4)`."""
        return f"another tool ({self.prune.pattern})" if self.zeros_found else self.prune.summary

    def __post_init__(self) -> None:
        for name, score in self.scores.items():
            if not math.isfinite(score):
                raise ConfigError(
                    f"scores.{name}",
                    "must be finite",
                    score,
                    "The weights of the model are broken. Lower the sparsity.",
                )


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A few tokens, and the log-probability of each except the first, given the tokens before it, in float32."""

    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """Content of `sparsity.json`: the facts, the zeros counted in the files, and a fingerprint of the model."""

    facts: Facts
    sparsity: Sparsity
    fingerprint: Fingerprint
    versions: dict[str, str]

    def data(self) -> dict[str, Any]:
        """Return the record as JSON data. Every count of zeros also has the computed `share`, the fraction of zeros."""
        return cast("dict[str, Any]", _RECORD.dump_python(self, mode="json"))

    def write(self, folder: Path) -> None:
        """Write the record to `sparsity.json` in a folder."""
        (folder / SPARSITY).write_bytes(canonical_json(self.data()))

    @classmethod
    def read(cls, folder: Path) -> "Record":
        """Read `sparsity.json` of a folder. Raises RecordFileError if it is missing or this library cannot read it."""
        path = folder / SPARSITY
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise RecordFileError(
                f"{folder} must contain {SPARSITY}; it is missing. Create the folder with seft prune."
            ) from None
        try:
            return _RECORD.validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            wrong = f"{field or 'the file'} is wrong: {first['msg']}"
        except ConfigError as error:
            wrong = str(error).removesuffix(".")
        raise RecordFileError(f"{path} must be as seft wrote it; {wrong}. {_way_out(content)}")


def _way_out(content: bytes) -> str:
    """Return what to do with the content of a `sparsity.json` that cannot be read. Another version can read its own."""
    try:
        written = json.loads(content)["versions"]["seft"]
    except (ValueError, KeyError, TypeError, RecursionError):
        written = None
    if not isinstance(written, str) or written == seft.__version__:
        return "Create the checkpoint again."
    return f"seft {written} wrote it, and this is seft {seft.__version__}: use that version, or a newer one."


_RECORD = TypeAdapter(Record)


def versions() -> dict[str, str]:
    """Return the versions of the software that the weights depend on."""
    return {"seft": seft.__version__, "torch": version("torch"), "transformers": version("transformers")}


def canonical_json(value: Any) -> bytes:
    """Return `value` as JSON with sorted keys, one item per line and no NaN."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


class ListedFile(NamedTuple):
    """An entry of `manifest.json`: the name of a file, its size in bytes and its SHA-256 in hex."""

    name: str
    size: int
    sha256: str


def manifest(folder: Path, stored: Iterable[ListedFile] = ()) -> bytes:
    """Return the content of `manifest.json`: all other files in the folder, and those that are `stored` elsewhere."""
    files = [
        ListedFile(path.relative_to(folder).as_posix(), path.stat().st_size, sha256(path))
        for path in folder.rglob("*")
        if path.is_file() and path != folder / MANIFEST
    ]
    return canonical_json({"files": [file._asdict() for file in sorted([*files, *stored])]})


def listed_files(folder: Path) -> dict[str, ListedFile]:
    """Return the entries of `manifest.json` by name. Raises VerifyError if the folder has no readable one."""
    try:
        written = json.loads((folder / MANIFEST).read_bytes())
        return {
            str(file["name"]): ListedFile(str(file["name"]), file["size"], file["sha256"]) for file in written["files"]
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VerifyError(
            f"{folder} must contain a readable {MANIFEST}: {error}. Create the checkpoint again."
        ) from None


def require_listed(folder: Path, expected: dict[str, ListedFile], stored: Iterable[ListedFile] = ()) -> None:
    """Raise VerifyError if the files of a folder and those that are `stored` elsewhere differ from the expected ones.

    Reads all files.
    """
    actual = {file["name"]: ListedFile(**file) for file in json.loads(manifest(folder, stored))["files"]}
    for name in sorted(expected.keys() | actual.keys()):
        if expected.get(name) != actual.get(name):
            listed, found = (files[name][1:] if name in files else None for files in (expected, actual))
            raise VerifyError(
                f"{name} must have the (size, sha256) of {MANIFEST}, {listed or 'no entry'};"
                f" it has {found or 'no file'}. Create or download the checkpoint again."
            )


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
