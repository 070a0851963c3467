"""Count the zeros of a downloaded checkpoint in the bytes of its files, independently of the code that wrote them.

Reads the published safetensors layout: eight bytes of length, a JSON header, the raw tensors. Supports only bfloat16.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

CHUNK_BYTES = 1 << 22
ALL_BUT_SIGN = 0x7FFF


@dataclass(frozen=True)
class Count:
    """Number of zeros, weights and rows of one tensor."""

    zeros: int
    weights: int
    rows: int

    def matches(self, sparsity: float) -> bool:
        """Return whether the sparsity is the requested one. Rounding may change it by less than one weight per row."""
        return abs(self.zeros - sparsity * self.weights) < self.rows


def count_zeros(path: Path) -> dict[str, Count]:
    """Count the zeros of every tensor in a safetensors file. Both zeros of bfloat16, 0 and -0, count."""
    counts = {}
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    for name, tensor in header.items():
        if tensor["dtype"] != "BF16":
            raise ValueError(f"{name} must be bfloat16; it is {tensor['dtype']}.")
        begin, end = tensor["data_offsets"]
        bits = np.memmap(path, np.uint16, "r", offset=8 + size + begin, shape=((end - begin) // 2,))
        counts[name] = Count(bits.size - int(np.count_nonzero(bits & ALL_BUT_SIGN)), bits.size, tensor["shape"][0])
    return counts


@dataclass(frozen=True)
class CheckpointStats:
    """Measurements of a downloaded checkpoint, and facts from its `sparsity.json`."""

    tensors: dict[str, Count]
    linears: list[str]
    """Names of the target linears."""
    grown: int
    """Number of weights that were zero after pruning and are not now, by `sparsity.json`."""
    bytes: int
    """Size of the weights."""
    deflated_bytes: int
    """Size of the weights after deflate at its fastest level."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read all files of a checkpoint."""
        record = json.loads((folder / "sparsity.json").read_bytes())
        shards = sorted(folder.glob("*.safetensors"))
        tensors = {name: count for shard in shards for name, count in count_zeros(shard).items()}
        linears = [f"{name}.weight" for name in record["sparsity"]["layers"]]
        size = sum(shard.stat().st_size for shard in shards)
        return cls(tensors, linears, record["facts"]["grown_zeros"], size, sum(map(deflated_size, shards)))

    def sparsity(self, names: list[str]) -> float:
        """Return the fraction of zeros in these tensors."""
        counts = [self.tensors[name] for name in names]
        return sum(count.zeros for count in counts) / sum(count.weights for count in counts)

    def mismatches(self, sparsity: float) -> list[str]:
        """Return the target linears that do not have this sparsity."""
        return [name for name in self.linears if not self.tensors[name].matches(sparsity)]


def deflated_size(path: Path) -> int:
    """Return the bytes of a file after deflate at its fastest level."""
    compressor, size = zlib.compressobj(1), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            size += len(compressor.compress(chunk))
    return size + len(compressor.flush())
