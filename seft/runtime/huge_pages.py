"""Memory in huge pages, for weights that a product reads from front to back.

A processor keeps the addresses of a few thousand pages. Weights of 1 GB have 244,000 pages of 4 kB, so reading them
waits for addresses again and again. This takes up to a fifth of the time of a product. A huge page has 2 MB.
"""

import mmap
from contextlib import suppress

import torch
from torch import Tensor

PAGE = 2 << 20
CHUNK = 32 * PAGE
ALIGNED = 64
"""Bytes to which tensors are aligned: a cache line."""


class HugePages:
    """Memory for tensors. Many tensors share a chunk, because separate huge pages would waste up to 2 MB per tensor.

    A chunk is freed with the last of its tensors. Pages without a tensor take no memory.
    """

    def __init__(self) -> None:
        self._chunk: Tensor | None = None
        self._used = 0

    def copy(self, tensor: Tensor) -> Tensor:
        """Return a contiguous copy of a CPU tensor in huge pages, or in other pages if the system has no huge ones."""
        if self._chunk is None or self._used + tensor.nbytes > len(self._chunk):
            self._chunk, self._used = _chunk(max(tensor.nbytes, CHUNK)), 0
        memory = self._chunk[self._used : self._used + tensor.nbytes]
        self._used += -(-tensor.nbytes // ALIGNED) * ALIGNED
        return memory.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def _chunk(size: int) -> Tensor:
    """Return new bytes that start at a huge page."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapped = mmap.mmap(-1, size + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a kernel without huge pages
            mapped.madvise(mmap.MADV_HUGEPAGE)
        everything = torch.frombuffer(mapped, dtype=torch.uint8)
    else:
        everything = torch.empty(size + PAGE, dtype=torch.uint8)
    first = -everything.data_ptr() % PAGE
    return everything[first : first + size]
