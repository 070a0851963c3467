"""The text files that pruning and repair read, with what a checkpoint says about them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seft.checkpoint.facts import Role, TextInfo, sha256
from seft.config import PruneConfig, RepairConfig, Retain
from seft.data import records
from seft.data.packing import Encoded, Packed, pack
from seft.data.text import encode, named
from seft.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TextFile:
    """The records of a file, its name without the path, and its SHA-256."""

    records: list[records.Record]
    name: str
    sha256: str

    @classmethod
    def read(cls, path: Path) -> "TextFile":
        """Read a `.jsonl` or `.txt` file. Raises ConfigError, RecordError or DataError if it has no valid records."""
        return cls(records.read(path), path.name, sha256(path))

    def without(self, held_out: "TextFile | None") -> "TextFile":
        """Return the text without the records of the held-out text. Raises DataError if no record is left."""
        return replace(self, records=records.exclude(self.records, held_out.records)) if held_out else self


@dataclass(frozen=True, slots=True)
class Texts:
    """The training text, and the texts to evaluate on and to retain or None."""

    training: TextFile
    held_out: TextFile | None
    retained: TextFile | None

    @property
    def to_retain(self) -> list[records.Record] | None:
        """The records of the text to retain, or None."""
        return self.retained.records if self.retained else None

    @classmethod
    def read(cls, data: Path, held_out: Path | None, retained: Path | None) -> "Texts":
        """Read the files. Records of the held-out text are left out of the others. Raises the errors of `TextFile`."""
        evaluated = TextFile.read(held_out) if held_out else None
        kept = TextFile.read(retained).without(evaluated) if retained else None
        return cls(TextFile.read(data).without(evaluated), evaluated, kept)

    def pack(self, tokenizer: Any, length: int) -> "PackedTexts":
        """Return the training and the held-out text in windows of `length` tokens.

        Raises DataError if one of them fills no window.
        """
        encoded = encode(self.training.records, tokenizer)
        described: dict[Role, TextInfo] = {"dataset": describe_records(self.training.name, encoded)}
        with named("training text"):
            training = pack(encoded, length)
        if self.held_out is None:
            return PackedTexts(self, training, None, described)
        encoded = encode(self.held_out.records, tokenizer)
        described["held_out"] = describe_records(self.held_out.name, encoded)
        with named("held-out text"):
            return PackedTexts(self, training, pack(encoded, length), described)


@dataclass(frozen=True, slots=True)
class PackedTexts:
    """Windows to train on, windows to evaluate on or None, and what a checkpoint says about these texts."""

    files: Texts
    training: Packed
    held_out: Packed | None
    described: dict[Role, TextInfo]


def describe_records(name: str | None, encoded: Sequence[Encoded]) -> TextInfo:
    """Return the description of a text from its tokenized records."""
    return TextInfo(name, len(encoded), sum(len(record.tokens) for record in encoded))


def describe_retained(name: str | None, retained: Packed) -> TextInfo:
    """Return the description of the text that is retained. Its records are its windows."""
    return TextInfo(name, len(retained), retained.tokens.numel())


def read_calibration(config: PruneConfig, calibration: Path | None) -> TextFile | None:
    """Return the text that pruning reads, or None if it reads none. Raises ConfigError if it is needed and missing."""
    names = config.text_users
    if not names:
        return None
    if calibration is None:
        way_out = "Give a .jsonl or .txt file, or use magnitude without refinement and reconstruction."
        raise ConfigError("calibration", f"must be given for {' and '.join(names)}", None, way_out)
    return TextFile.read(calibration)


def require_retain_data(config: RepairConfig, retain_data: Path | None) -> None:
    """Raise ConfigError if a dataset is to be retained and there is none, or the other way round."""
    if (config.retain is Retain.DATASET) != (retain_data is not None):
        rule = "must be given if retain is dataset, and only then"
        raise ConfigError("retain_data", rule, retain_data and str(retain_data), "Give the text, or change retain.")


def split_dataset(
    found: list[records.Record], held_out: list[records.Record] | None, share: float | None, seed: int
) -> tuple[list[records.Record], list[records.Record]]:
    """Return the records of a job's dataset to train on, and the records to evaluate on.

    The records to evaluate on are `held_out`, or, if `held_out` is None, the fraction `share` of the dataset. No record
    is in both parts. Raises DataError if a part is empty.
    """
    if held_out is not None:
        return records.exclude(found, held_out), held_out
    assert share is not None
    return records.split(found, share, seed)
