"""Count the zeros in the files of a downloaded checkpoint, without the code that wrote the files.

The files are in the safetensors format: eight bytes with the length of a JSON header, the header, and the raw
tensors. Only tensors of type bfloat16 are supported.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

ALL_BUT_SIGN = 0x7FFF


@dataclass(frozen=True)
class Count:
    """Number of zeros, of weights, and of rows of one tensor."""

    zeros: int
    weights: int
    rows: int


def count_zeros(path: Path) -> dict[str, Count]:
    """Count the zeros of every tensor in a safetensors file. The values 0 and -0 of bfloat16 both count as zeros."""
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
    """Measured sizes and zeros of a downloaded checkpoint, and values read from its `sparsity.json`."""

    tensors: dict[str, Count]
    linears: list[str]
    """Names of the weight tensors that were pruned, from `sparsity.json`."""
    bytes: int
    """Total bytes of the weight files."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read and measure all files of a checkpoint in a folder."""
        record = json.loads((folder / "sparsity.json").read_bytes())
        shards = sorted(folder.glob("*.safetensors"))
        tensors = {name: count for shard in shards for name, count in count_zeros(shard).items()}
        linears = [f"{name}.weight" for name in record["sparsity"]["layers"]]
        return cls(tensors, linears, sum(shard.stat().st_size for shard in shards))

    def sparsity(self, names: list[str]) -> float:
        """Return the fraction of zeros in the tensors with these names."""
        counts = [self.tensors[name] for name in names]
        return sum(count.zeros for count in counts) / sum(count.weights for count in counts)

    def has(self, sparsity: float) -> bool:
        """Return whether the pruned tensors together have the requested sparsity.

        Less than one zero per tensor may be missing. Training may set a few more weights to exactly zero, on average
        less than one per row.
        """
        counts = [self.tensors[name] for name in self.linears]
        missing = sparsity * sum(count.weights for count in counts) - sum(count.zeros for count in counts)
        return -sum(count.rows for count in counts) < missing < len(counts)
