"""How sparse each target linear of a published checkpoint is, as its own `sparsity.json` counted it."""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from core.storage import Storage
from core.tables import Checkpoint

RECORD = "sparsity.json"
KEPT = 64
"""A checkpoint never changes: so many are remembered."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A target linear: the decoder block that it is in, what it is there, its share of zeros."""

    block: int
    part: str
    share: float


@dataclass(frozen=True, slots=True)
class Grid:
    """The layers as a table: a row for each part, a column for each block; and the mean of each block."""

    blocks: tuple[int, ...]
    parts: tuple[str, ...]
    cells: dict[tuple[str, int], float]
    means: tuple[float, ...]


def grid(storage: Storage, checkpoint: Checkpoint) -> Grid | None:
    """Of every target linear, in the model's order; None where the checkpoint does not say."""
    if all(file["name"] != RECORD for file in checkpoint.files):
        return None
    return arranged(_read(storage, checkpoint.prefix + RECORD))


def arranged(layers: Sequence[Layer]) -> Grid | None:
    """The table of these layers; None where there are none."""
    of_block: dict[int, list[float]] = defaultdict(list)
    for layer in layers:
        of_block[layer.block].append(layer.share)
    if not of_block:
        return None
    return Grid(
        blocks=tuple(of_block),
        parts=tuple(dict.fromkeys(layer.part for layer in layers)),
        cells={(layer.part, layer.block): layer.share for layer in layers},
        means=tuple(sum(shares) / len(shares) for shares in of_block.values()),
    )


@lru_cache(maxsize=KEPT)
def _read(storage: Storage, key: str) -> Sequence[Layer]:
    counts = json.loads(storage.read(key))["sparsity"]["layers"]
    return tuple(_layer(name, count["zeros"] / max(1, count["weights"])) for name, count in counts.items())


def _layer(name: str, share: float) -> Layer:
    found = re.search(r"\.(\d+)\.(.+)$", name)
    return Layer(int(found[1]) if found else 0, found[2] if found else name, share)
