"""Count the zeros of a downloaded checkpoint from the bytes of its files, with none of the code that wrote them.

Reads safetensors by their published layout: eight bytes of length, a JSON header, the raw tensors. Only bfloat16.
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
    """Zeros of one weight; `rows` of it may each be off by a rounding."""

    zeros: int
    weights: int
    rows: int

    def is_near(self, sparsity: float) -> bool:
        """Whether the zeros are those asked for, but for less than one weight a row."""
        return abs(self.zeros - sparsity * self.weights) < self.rows


def count_zeros(path: Path) -> dict[str, Count]:
    """The count of every tensor in a safetensors file; both zeros of bfloat16 count."""
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
class Seen:
    """What a downloaded checkpoint shows: counts by tensor, and what its own `sparsity.json` tells."""

    tensors: dict[str, Count]
    linears: list[str]
    """Names of the target linears."""
    grown: int
    """Weights that were zero after pruning and are not now."""
    bytes: int
    zipped: int
    """Bytes of the weights after deflate at its fastest."""

    @classmethod
    def at(cls, folder: Path) -> Self:
        """Look at every file."""
        told = json.loads((folder / "sparsity.json").read_bytes())
        shards = sorted(folder.glob("*.safetensors"))
        tensors = {name: count for shard in shards for name, count in count_zeros(shard).items()}
        linears = [f"{name}.weight" for name in told["sparsity"]["layers"]]
        size = sum(shard.stat().st_size for shard in shards)
        return cls(tensors, linears, told["facts"]["grown_zeros"], size, sum(map(deflated, shards)))

    def share(self, names: list[str]) -> float:
        """Zeros per weight over these tensors."""
        counts = [self.tensors[name] for name in names]
        return sum(count.zeros for count in counts) / sum(count.weights for count in counts)

    def off(self, sparsity: float) -> list[str]:
        """The target linears that are not as sparse as asked."""
        return [name for name in self.linears if not self.tensors[name].is_near(sparsity)]


def deflated(path: Path) -> int:
    """How many bytes a file has after deflate at its fastest level."""
    packer, size = zlib.compressobj(1), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            size += len(packer.compress(chunk))
    return size + len(packer.flush())
