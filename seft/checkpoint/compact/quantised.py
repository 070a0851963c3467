"""int8 and NF4 values in a compact container: matrices of bfloat16 become small integers with scales.

The container stores a matrix `NAME` of a safetensors file as two tensors: `NAME` has the integers (I8), and another one
has the scales. Zeros stay exactly zero, so they are in the mask only.

- int8: `NAME.row_scale`, F32, has one scale per row: the largest magnitude of the row / 127. A weight is
  integer * scale, and the integers are from -127 to 127.
- NF4: `NAME.block_scale`, BF16, has one scale for each 64 columns of a row: the largest magnitude of this block. A
  weight is NF4[integer + 7] * scale, and the integers are from -7 to 8. NF4 are the 16 values of the 4-bit NormalFloat
  (Dettmers et al. 2023, QLoRA, arXiv 2305.14314, appendix E). One of them is 0.

With NF4, the matrices that are pruned are NF4. Every other matrix in bfloat16 that is outside of the decoder blocks is
int8: the embedding and the head, and also embeddings of positions and projections. Nothing else is quantised. The key
`seft.integers` in the metadata of the file names the kind.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NamedTuple

import numpy as np

from seft.checkpoint.bfloat16 import Bits, Floats, to_bfloat16, to_float32
from seft.errors import ContainerError
from seft.models.limits import MAX_NAME
from seft.models.safetensors_header import Header, Tensor, make_header
from seft.models.tensors import is_pruned, place_in_blocks

IntegerKind = Literal["int8", "nf4"]
ROW_SCALE, BLOCK_SCALE = ".row_scale", ".block_scale"
MARK = "seft.integers"
"""Key in the metadata of a safetensors file whose matrices are integers."""
BLOCK = 64
"""Columns of a row that share a scale in NF4."""
NF4 = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
_ZERO = 7
"""Index of 0 in NF4."""
_CHUNK = 1 << 20
"""Values that are converted at a time."""
Integers = np.ndarray[Any, np.dtype[np.int8]]


class Rows(NamedTuple):
    """A matrix in int8: its integers, row after row, and the scale of each row."""

    values: Integers
    scales: Floats


class Blocks(NamedTuple):
    """A matrix in NF4: its integers, row after row, the scales of the blocks as bfloat16 bits, and its columns."""

    values: Integers
    scales: Bits
    cols: int


def quantise_rows(bits: Bits, cols: int) -> Rows:
    """Return a matrix in int8. `bits` is its bfloat16 values, row after row. Raises ValueError if one is not finite."""
    values, scales = np.empty(bits.size, np.int8), np.empty(bits.size // cols, np.float32)
    step = max(1, _CHUNK // cols)
    for first in range(0, len(scales), step):
        part = slice(first * cols, (first + step) * cols)
        rows = to_float32(bits[part]).reshape(-1, cols)
        scale = _finite(np.abs(rows).max(axis=1)) / np.float32(127)
        scales[first : first + step] = scale
        values[part] = np.rint(rows / _nonzero(scale)[:, None]).clip(-127, 127).reshape(-1)
    return Rows(values, scales)


def quantise_blocks(bits: Bits, cols: int) -> Blocks:
    """Return a matrix in NF4. `bits` is its bfloat16 values, row after row. Raises ValueError if one is not finite."""
    rows, blocks = bits.size // cols, -(-cols // BLOCK)
    values, scales = np.empty(bits.size, np.int8), np.empty(rows * blocks, np.uint16)
    step, edges = max(1, _CHUNK // cols), (NF4[1:] + NF4[:-1]) / 2
    for first in range(0, rows, step):
        part = slice(first * cols, (first + step) * cols)
        blocked = _blocked(to_float32(bits[part]), cols)
        scale = _finite(np.abs(blocked).max(axis=2))
        codes = np.searchsorted(edges, blocked / _nonzero(scale)[:, :, None]) - _ZERO
        values[part] = codes.reshape(len(codes), -1)[:, :cols].reshape(-1)
        scales[first * blocks : (first + step) * blocks] = to_bfloat16(scale).reshape(-1)
    return Blocks(values, scales, cols)


def weights(matrix: Rows | Blocks) -> Floats:
    """Return the weights of a matrix of integers, as one row. Raises ValueError if its parts do not fit together."""
    result, at = np.empty(len(matrix.values), np.float32), 0
    for part in weight_parts(matrix):
        result[at : at + len(part)] = part
        at += len(part)
    return result


def weight_parts(matrix: Rows | Blocks) -> Iterator[Floats]:
    """Yield the weights of a matrix of integers in parts. Raises ValueError if its parts do not fit together."""
    is_int8 = isinstance(matrix, Rows)
    scales = matrix.scales if isinstance(matrix, Rows) else to_float32(matrix.scales)
    cols = matrix.cols if isinstance(matrix, Blocks) else len(matrix.values) // max(1, len(matrix.scales))
    blocks = 1 if is_int8 else -(-cols // BLOCK)
    lowest, highest = (-127, 127) if is_int8 else (-_ZERO, len(NF4) - 1 - _ZERO)
    if not cols or len(scales) * cols != len(matrix.values) * blocks:
        raise ValueError(f"{len(matrix.values)} values in rows of {cols} do not have {len(scales)} scales")
    if not lowest <= matrix.values.min() <= matrix.values.max() <= highest:
        raise ValueError(f"an integer must be from {lowest} to {highest}")
    _require_scales(scales, np.float32(127 if is_int8 else 1))
    step = max(1, _CHUNK // cols)
    for first in range(0, len(scales) // blocks, step):
        integers = matrix.values[first * cols : (first + step) * cols]
        spread = np.repeat(scales.reshape(-1, blocks)[first : first + step], cols if is_int8 else BLOCK, axis=1)
        table = integers if is_int8 else NF4[integers.astype(np.intp) + _ZERO]
        yield table * spread[:, :cols].reshape(-1)


@dataclass(slots=True)
class _Made:
    """What a tensor of the dense file becomes, by name, and the number of bytes that were not read."""

    contents: dict[str, memoryview]
    unread: int


class QuantisedFile:
    """A safetensors file of a dense folder with its matrices in integers. Its bytes are made when they are read.

    `experts` is the number of experts in a block, or 0.
    """

    def __init__(self, path: Path, header: Header, kind: IntegerKind, experts: int) -> None:
        """Make the header of the new file. `header` is the header of the dense file."""
        self._content = np.memmap(path, np.uint8, "r")
        self._sources = dict(sorted(header.tensors.items(), key=lambda item: item[1].begin))
        if odd := [name for name, each in self._sources.items() if each.dtype == "I8" and len(each.shape) > 1]:
            raise ContainerError(f"{odd[0]!r} in {path.name} has integers already. Use the format `compact`.")
        self._kinds = {
            name: chosen for name, each in self._sources.items() if (chosen := _kind(name, each, kind, experts))
        }
        self._made: dict[str, _Made] = {}
        self._lock = Lock()
        shapes = list(self._shapes())
        self._names = [name for name, *_ in shapes]
        self._owners = {name: source for name, source, *_ in shapes}
        for name, count in Counter(self._names).items():
            if count > 1 or len(name) > MAX_NAME:
                flaw = "another tensor has it" if count > 1 else f"it has more than {MAX_NAME} characters"
                raise ContainerError(
                    f"{path.name} cannot get a tensor of the name {name!r}: {flaw}. Use the format `compact`."
                )
        mark = {MARK: kind} if self._kinds else {}
        metadata = {**header.metadata, **mark}
        self.own, self.tensors = make_header({name: (dtype, shape) for name, _, dtype, shape in shapes}, metadata)
        self._begins = [each.begin for each in self.tensors.values()]
        self.size = max((each.end for each in self.tensors.values()), default=len(self.own))

    def read(self, begin: int, size: int) -> bytes:
        """Return bytes of the header, or of one tensor."""
        if begin < len(self.own):
            return self.own[begin : begin + size]
        name = self._names[bisect_right(self._begins, begin) - 1]
        at = begin - self.tensors[name].begin
        return self._part(self._owners[name], name, slice(at, at + size))

    def _shapes(self) -> Iterator[tuple[str, str, str, tuple[int, ...]]]:
        """Yield, for each tensor, its name, the name of its tensor in the dense file, its dtype and its shape."""
        for name, source in self._sources.items():
            kind = self._kinds.get(name)
            yield name, name, "I8" if kind else source.dtype, source.shape
            match kind:
                case "int8":
                    yield name + ROW_SCALE, name, "F32", source.shape[:-1]
                case "nf4":
                    yield name + BLOCK_SCALE, name, "BF16", (*source.shape[:-1], -(-source.shape[-1] // BLOCK))

    @property
    def has_integers(self) -> bool:
        """Whether any tensor becomes integers."""
        return bool(self._kinds)

    def _part(self, owner: str, name: str, place: slice) -> bytes:
        """Return bytes of the tensor `name`, which the tensor `owner` of the dense file becomes.

        All tensors that `owner` becomes stay in memory until all their bytes were read.
        """
        with self._lock:
            if owner not in self._made:
                contents = self._make(owner)
                self._made[owner] = _Made(contents, sum(each.nbytes for each in contents.values()))
            made = self._made[owner]
            part = bytes(made.contents[name][place])
            made.unread -= len(part)
            if made.unread <= 0:
                del self._made[owner]
        return part

    def _make(self, name: str) -> dict[str, memoryview]:
        source = self._sources[name]
        content = self._content[source.begin : source.end]
        if (kind := self._kinds.get(name)) is None:
            return {name: content.data}
        quantise, ending = (quantise_rows, ROW_SCALE) if kind == "int8" else (quantise_blocks, BLOCK_SCALE)
        try:
            matrix = quantise(content.view(np.uint16), source.shape[-1])
        except ValueError as error:
            raise ContainerError(f"{name!r} cannot become integers: {error}. Use the format `compact`.") from error
        return {name: matrix.values.data.cast("B"), name + ending: matrix.scales.data.cast("B")}


def _kind(name: str, tensor: Tensor, kind: IntegerKind, experts: int) -> IntegerKind | None:
    """Return the kind of integers in which a tensor is stored, or None if it stays as it is.

    Outside of the decoder blocks, every tensor of two dimensions in bfloat16 is int8.
    """
    if tensor.dtype != "BF16" or not tensor.shape or not min(tensor.shape):
        return None
    if (place := place_in_blocks(name)) is None:
        return "int8" if len(tensor.shape) == 2 else None
    return kind if is_pruned(place[2], tensor.shape, experts) else None


def _blocked(values: Floats, cols: int) -> Floats:
    """Return rows as blocks: (rows, blocks, BLOCK). The last block of a row is filled with zeros."""
    rows = np.pad(values.reshape(-1, cols), ((0, 0), (0, -cols % BLOCK)))
    return rows.reshape(len(rows), -1, BLOCK)


def _finite(values: Floats) -> Floats:
    if not np.isfinite(values).all():
        raise ValueError("weights must be finite; some are not")
    return values


def _require_scales(scales: Floats, largest: np.float32) -> None:
    """Raise ValueError unless all weights are finite in bfloat16. `largest` is the largest factor of a scale."""
    with np.errstate(over="ignore"):
        most = scales * largest
    if not np.isfinite(most).all() or not np.isfinite(to_float32(to_bfloat16(most))).all() or (scales < 0).any():
        raise ValueError("scales must be 0 or more, and the weights must be finite; some are not")


def _nonzero(scales: Floats) -> Floats:
    """Return the scales with 1 instead of 0, to divide by. All weights with the scale 0 are 0."""
    return np.where(scales > 0, scales, np.float32(1))
