"""Compares two checkpoints by the hashes in their manifests, and their weights tensor by tensor if both have them."""

import json
from pathlib import Path
from typing import Any

from seft.checkpoint.facts import MANIFEST, SPARSITY
from seft.checkpoint.folder import tensors
from seft.config import OutputFormat, format_of
from seft.errors import ReproduceError
from seft.models.model_files import CARD, CONFIG
from seft.models.safetensors_header import Tensor

DESCRIBING = frozenset({CARD, SPARSITY})
"""Files that describe a checkpoint. They name the software and the machine, so they may differ if no weight does."""


def read_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the files of a checkpoint, from its manifest. Raises ReproduceError if it has none."""
    path = folder / MANIFEST
    try:
        return {str(file["name"]): str(file["sha256"]) for file in json.loads(path.read_bytes())["files"]}
    except FileNotFoundError:
        rule = f"{MANIFEST} must be in the folder of {SPARSITY}, because it has the hashes of the weights"
        raise ReproduceError(f"{rule}; {folder} has none. Download it too.") from None
    except (ValueError, KeyError, TypeError) as error:
        message = f"{path} must be as seft wrote it; it cannot be read: {error!r}. Download it again."
        raise ReproduceError(message) from error


def formats_of(files: dict[str, str]) -> list[OutputFormat]:
    """Return the formats to which files belong, in the order of the formats."""
    found = {format_of(name) for name in files}
    return [each for each in OutputFormat if each in found]


def differing_files(recorded: dict[str, str], found: dict[str, str]) -> list[str]:
    """Return the names of the files that are only in one of two checkpoints or differ, without `DESCRIBING`."""
    names = {*recorded, *found} - DESCRIBING
    return sorted(name for name in names if recorded.get(name) != found.get(name))


def differing_tensors(recorded: Path, found: Path) -> list[str]:
    """Return the names of the tensors that differ between two folders; an empty list if one has no dense weights."""
    if not all((folder / CONFIG).exists() for folder in (recorded, found)):
        return []
    before = {name: (content, place) for content, name, place in tensors(recorded)}
    after = {name: (content, place) for content, name, place in tensors(found)}

    def value(side: dict[str, tuple[Any, Tensor]], name: str) -> tuple[object, bytes] | None:
        if name not in side:
            return None
        content, place = side[name]
        return (place.dtype, place.shape), content[place.begin : place.end].tobytes()

    return sorted(name for name in {*before, *after} if value(before, name) != value(after, name))
