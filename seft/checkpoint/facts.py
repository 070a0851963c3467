"""What a checkpoint says of itself: `Facts` given by its maker, and the two files `sparsity.json` and `manifest.json`.

Both files are canonical JSON: equal content, equal bytes. Neither knows a time, a host, a job or an absolute path.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

import seft
from seft.checkpoint.sparsity import Sparsity
from seft.config import EvaluateConfig, PruneConfig, RepairConfig
from seft.errors import ConfigError, VerifyError
from seft.models.source import Kind, ModelSource

SPARSITY = "sparsity.json"
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Base:
    """The dense model. `reference` is a hub id, or the name of a file or folder without its path."""

    reference: str
    kind: Kind
    revision: str | None
    licence: str | None

    @classmethod
    def of(cls, source: ModelSource) -> "Base":
        """What may be published of a source."""
        name = source.reference if source.kind is Kind.HUB else Path(source.reference).resolve().name
        return cls(name, source.kind, source.revision, source.licence)


@dataclass(frozen=True, slots=True)
class Facts:
    """What was done. `repair` is None for a model that was only pruned; a hash is None where no such text was read.

    `scores` are perplexities under the names dense, pruned and repaired, measured as `evaluate` says: dense on the
    weights as they came, the others on weights rounded as they are exported. `grown_zeros` counts weights that were
    zero after pruning and are not now. `stopped_at` is the step at which training was ended before its last one,
    `kept_at` the step whose state was kept because a later one was not better, `teacher` the dense model that repair
    learnt from.
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
    teacher: Base | None = None

    def __post_init__(self) -> None:
        for name, score in self.scores.items():
            if not math.isfinite(score):
                raise ConfigError(f"scores.{name}", "must be finite", score, "This model is broken: prune it less.")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Log-probabilities that the model gives to each of `tokens` but the first after those before it, in float32."""

    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """The content of `sparsity.json`: the facts, the count of the written file, and what proves a good reading."""

    facts: Facts
    sparsity: Sparsity
    fingerprint: Fingerprint
    versions: dict[str, str]

    def data(self) -> dict[str, Any]:
        """As JSON knows it, shares included."""
        return cast("dict[str, Any]", _RECORD.dump_python(self, mode="json"))

    def write(self, folder: Path) -> None:
        """Write `sparsity.json`."""
        (folder / SPARSITY).write_bytes(canonical(self.data()))

    @classmethod
    def read(cls, folder: Path) -> "Record":
        """Read `sparsity.json`; VerifyError when it is missing or is none of ours."""
        path = folder / SPARSITY
        try:
            return _RECORD.validate_json(path.read_bytes())
        except FileNotFoundError:
            raise VerifyError(
                f"{folder} must hold {SPARSITY}; it is missing. Make the folder with seft prune."
            ) from None
        except ValidationError as error:
            flaw = error.errors()[0]
            where = ".".join(map(str, flaw["loc"]))
            raise VerifyError(f"{path} must be as seft wrote it; {where}: {flaw['msg']}. Export again.") from None


_RECORD = TypeAdapter(Record)


def versions() -> dict[str, str]:
    """The software whose versions decide about the weights."""
    return {"seft": seft.__version__, "torch": version("torch"), "transformers": version("transformers")}


def canonical(value: Any) -> bytes:
    """JSON with sorted keys, one item a line, no NaN."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def manifest(folder: Path) -> bytes:
    """The content of `manifest.json` for what lies in the folder: name, size and sha256 of every other file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return canonical(
        {
            "files": [
                {"name": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "sha256": sha256(path)}
                for path in files
            ]
        }
    )


def sha256(path: Path) -> str:
    """Of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
