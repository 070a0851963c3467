"""The target linears as a table of parts and blocks: how sparse each is written, and where the topology changed."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from core.infra.storage import Storage
from core.jobs.reports import CHANGES, Evolution
from core.tables import Checkpoint, Json

RECORD = "sparsity.json"
ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
KEPT = 64
"""A checkpoint never changes: so many are remembered."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a target linear is: its decoder block, and what it is there. The experts of a block have one place."""

    block: int
    part: str

    @classmethod
    def of(cls, name: str) -> "Place":
        """Out of the linear's full name."""
        found = re.search(r"\.(\d+)\.(.+)$", name)
        part = re.sub(r"\.\d+(?=\.)|\[\d+\]$", "", found[2] if found else name)
        return cls(int(found[1]) if found else 0, part)


@dataclass(frozen=True, slots=True)
class Grid:
    """Shares of zeros: for each part that of each block."""

    parts: dict[str, dict[int, float]]

    @property
    def blocks(self) -> list[int]:
        """All of them, in order."""
        return sorted({block for shares in self.parts.values() for block in shares})

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest share."""
        shares = [share for part in self.parts.values() for share in part.values()]
        return min(shares), max(shares)


def grid(storage: Storage, checkpoint: Checkpoint) -> Grid | None:
    """Of every target linear of a checkpoint, as its `sparsity.json` counted it; None where it does not say."""
    if all(file["name"] != RECORD for file in checkpoint.files):
        return None
    return _read(storage, checkpoint.prefix + RECORD)


@lru_cache(maxsize=KEPT)
def _read(storage: Storage, key: str) -> Grid | None:
    zeros, weights = Counter[Place](), Counter[Place]()
    for name, count in json.loads(storage.read(key))["sparsity"]["layers"].items():
        zeros[Place.of(name)] += count["zeros"]
        weights[Place.of(name)] += count["weights"]
    parts: dict[str, dict[int, float]] = defaultdict(dict)
    for place, total in weights.items():
        parts[place.part][place.block] = zeros[place] / max(1, total)
    return Grid({part: parts[part] for part in sorted(parts, key=_order)}) if parts else None


def life(runs: Sequence[Evolution]) -> Json:
    """The topology's events for a picture: {"step": [...], "sums": {"grown": [...], ...}, "blocks": [...],

    "parts": [{"name": ..., "cells": [[a count for each step] for each block]}]}.
    """
    places = {name: Place.of(name) for run in runs for name in run.layers}
    counts: dict[Place, list[int]] = {place: [0] * len(runs) for place in places.values()}
    for number, run in enumerate(runs):
        for name, count in run.layers.items():
            counts[places[name]][number] += count
    blocks = sorted({place.block for place in counts})
    nothing = [0] * len(runs)
    return {
        "step": [run.step for run in runs],
        "sums": {name: [run.sums[name] for run in runs] for name in CHANGES},
        "blocks": blocks,
        "parts": [
            {"name": part, "cells": [counts.get(Place(block, part), nothing) for block in blocks]}
            for part in sorted({place.part for place in counts}, key=_order)
        ],
    }


def _order(part: str) -> tuple[int, str]:
    """Attention before what follows it, and each in the order in which data pass; other names behind, by the letter."""
    known = next((place for place, name in enumerate(ORDER) if name in part), len(ORDER))
    return known, part
