"""The table of the pruned linear layers by decoder block, and the history of their zeros, for the page of a job."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import structlog
from pydantic import BaseModel, NonNegativeInt

from core.infra.storage import STORAGE_ERRORS, Storage
from core.jobs.reports import CHANGES, Evolution
from core.stored_specs import read_if_valid
from core.tables import Checkpoint, Json
from seft.config import Allocation

SPARSITY_FILE = "sparsity.json"
PART_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MAX_BYTES = 32 << 20
"""Largest `sparsity.json` that is read. A layer needs about 100 bytes."""
CACHED_CHECKPOINTS = 64
"""Maximum number of checkpoints whose table is cached. A checkpoint never changes, so the cache is always valid."""

log = structlog.get_logger(__name__)


def equally_sparse(spec: Json) -> bool:
    """Return whether a stored request gives all layers the same sparsity. False if it is not valid any more."""
    valid = read_if_valid(spec)
    return valid is not None and valid.prune_config().resolved_allocation is Allocation.UNIFORM


@dataclass(frozen=True, slots=True)
class LayerPosition:
    """Position of a pruned linear layer: its decoder block, and its part of the block, such as `mlp.up_proj`.

    All experts of a block have the same position.
    """

    block: int
    part: str

    @classmethod
    def of(cls, name: str) -> "LayerPosition":
        """Parse the full name of the layer."""
        match = re.search(r"\.(\d+)\.(.+)$", name)
        part = re.sub(r"\.\d+(?=\.)|\[\d+\]$", "", match[2] if match else name)
        return cls(int(match[1]) if match else 0, part)


@dataclass(frozen=True, slots=True)
class SparsityTable:
    """Fraction of zeros per part of a block and per block."""

    parts: dict[str, dict[int, float]]

    @property
    def blocks(self) -> list[int]:
        """All block numbers, in ascending order."""
        return sorted({block for fractions in self.parts.values() for block in fractions})


def sparsity_table(storage: Storage, checkpoint: Checkpoint) -> SparsityTable | None:
    """Return the sparsity of each pruned linear layer, read from the checkpoint's `sparsity.json`.

    Returns None if that file lists no layers, is malformed, or cannot be read now. A training process wrote it, so it
    may contain anything.
    """
    if all(file["name"] != SPARSITY_FILE for file in checkpoint.files):
        return None
    try:
        return _read(storage, checkpoint.prefix + SPARSITY_FILE)
    except STORAGE_ERRORS as error:
        log.warning("sparsity.unreadable", checkpoint=checkpoint.id, error=str(error))
        return None


class _Count(BaseModel):
    zeros: NonNegativeInt
    weights: NonNegativeInt


class _Sparsity(BaseModel):
    layers: dict[str, _Count]


class _File(BaseModel):
    """The part of `sparsity.json` that is used here."""

    sparsity: _Sparsity


@lru_cache(maxsize=CACHED_CHECKPOINTS)
def _read(storage: Storage, key: str) -> SparsityTable | None:
    zeros, weights = Counter[LayerPosition](), Counter[LayerPosition]()
    try:
        for name, count in _File.model_validate_json(storage.read(key, MAX_BYTES)).sparsity.layers.items():
            zeros[LayerPosition.of(name)] += count.zeros
            weights[LayerPosition.of(name)] += count.weights
    except ValueError:
        return None
    parts: dict[str, dict[int, float]] = defaultdict(dict)
    for position, total in weights.items():
        parts[position.part][position.block] = zeros[position] / max(1, total)
    return SparsityTable({part: parts[part] for part in sorted(parts, key=_part_order)}) if parts else None


def topology_history(runs: Sequence[Evolution]) -> Json:
    """Return the topology updates of a job as data for the charts.

    {"step": [...], "sparsity": [...], "sums": {"grown": [...], ...}, "blocks": [...], "parts": [{"name": ...,
    "cells": [[a count per step] per block]}]}.
    """
    positions = {name: LayerPosition.of(name) for run in runs for name in run.layers}
    counts: dict[LayerPosition, list[int]] = {position: [0] * len(runs) for position in positions.values()}
    for number, run in enumerate(runs):
        for name, count in run.layers.items():
            counts[positions[name]][number] += count
    blocks = sorted({position.block for position in counts})
    no_changes = [0] * len(runs)
    return {
        "step": [run.step for run in runs],
        "sparsity": [run.sparsity for run in runs],
        "sums": {name: [run.sums[name] for run in runs] for name in CHANGES},
        "blocks": blocks,
        "parts": [
            {"name": part, "cells": [counts.get(LayerPosition(block, part), no_changes) for block in blocks]}
            for part in sorted({position.part for position in counts}, key=_part_order)
        ],
    }


def _part_order(part: str) -> tuple[int, str]:
    """Return the sort key of a part. Known parts come first, in the order of the data flow; others follow by name."""
    rank = next((rank for rank, name in enumerate(PART_ORDER) if name in part), len(PART_ORDER))
    return rank, part
