"""The dense form of a safetensors file in a compact container whose matrices are stored as integers with scales.

`seft.checkpoint.compact.quantised` describes how they are stored. In the dense form they are bfloat16 again, so every
tool can load the file.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np

from seft.checkpoint.bfloat16 import Floats, to_bfloat16
from seft.checkpoint.compact.index import AGAIN, FileEntry, TensorEntry
from seft.checkpoint.compact.planes import Bytes
from seft.checkpoint.compact.quantised import (
    BLOCK,
    BLOCK_SCALE,
    MARK,
    ROW_SCALE,
    Blocks,
    IntegerKind,
    Rows,
    weight_parts,
    weights,
)
from seft.errors import ContainerError
from seft.models.safetensors_header import make_header, read_metadata


class Source(Protocol):
    """An open container."""

    name: str

    def tensor(self, tensor: TensorEntry, /) -> Bytes:
        """Return the bytes of a tensor."""

    def own_bytes(self, file: FileEntry, /) -> bytes:
        """Return the bytes of a file that belong to no tensor."""


class Matrix(NamedTuple):
    """The tensors of a matrix of integers."""

    values: TensorEntry
    scales: TensorEntry


def integer_kind(container: Source, file: FileEntry) -> IntegerKind | None:
    """Return how the matrices of a file are stored, or None if they are not integers.

    Raises ContainerError if the header is damaged or names another kind.
    """
    kind = read_metadata(container.own_bytes(file)).get(MARK) if file.tensors else None
    if kind not in {None, "int8", "nf4"}:
        raise ContainerError(
            f"{file.name!r} in {container.name} has integers of the unknown kind {kind!r:.40}. {AGAIN}"
        )
    return kind


def integer_matrices(container: Source, file: FileEntry) -> dict[str, Matrix]:
    """Return the matrices of a file that are stored as integers, by name. Reads the header of the file.

    Raises ContainerError if the header is damaged, or if integers and scales do not fit together.
    """
    if integer_kind(container, file) is None:
        return {}
    tensors, found = {each.name: each for each in file.tensors}, dict[str, Matrix]()
    for name, values in tensors.items():
        if values.dtype != "I8" or len(values.shape) < 2:
            continue
        *rows, cols = values.shape
        expected = {
            (name + ROW_SCALE, "F32", tuple(rows)),
            (name + BLOCK_SCALE, "BF16", (*rows, -(-cols // BLOCK))),
        }
        scales = [tensors[name + ending] for ending in (ROW_SCALE, BLOCK_SCALE) if name + ending in tensors]
        if not min(values.shape) or [(each.name, each.dtype, each.shape) in expected for each in scales] != [True]:
            raise ContainerError(
                f"{name!r} in {container.name} must have exactly one tensor of scales, of the right dtype and shape; it"
                f" has none, a wrong one or two. {AGAIN}"
            )
        found[name] = Matrix(values, scales[0])
    return found


def matrix_weights(container: Source, matrix: Matrix) -> Floats:
    """Return the weights of a matrix of integers, as one row. Raises ContainerError if it is damaged."""
    with _damage(container, matrix):
        return weights(_read(container, matrix))


def _read(container: Source, matrix: Matrix) -> Rows | Blocks:
    values, scales = container.tensor(matrix.values).view(np.int8), container.tensor(matrix.scales)
    if matrix.scales.name.endswith(ROW_SCALE):
        return Rows(values, scales.view("<f4"))
    return Blocks(values, scales.view("<u2"), matrix.values.shape[-1])


@contextmanager
def _damage(container: Source, matrix: Matrix) -> Iterator[None]:
    """Convert ValueError to an error that names the matrix."""
    try:
        yield
    except ValueError as error:
        raise ContainerError(f"{matrix.values.name!r} in {container.name} is damaged: {error}. {AGAIN}") from error


class DenseFile:
    """A file of a container whose matrices of integers become bfloat16. Other tensors stay as they are."""

    def __init__(self, container: Source, file: FileEntry, integers: Mapping[str, Matrix]) -> None:
        """Make the header. `integers` is `integer_matrices` of the file."""
        self._container, self._matrices = container, integers
        hidden = {matrix.scales.name for matrix in self._matrices.values()}
        self._tensors = [each for each in file.tensors if each.name not in hidden]
        metadata = read_metadata(container.own_bytes(file))
        metadata.pop(MARK, None)
        dtypes = {each.name: ("BF16" if each.name in integers else each.dtype, each.shape) for each in self._tensors}
        self._own, places = make_header(dtypes, metadata)
        self.size = max((each.end for each in places.values()), default=len(self._own))

    def contents(self) -> Iterator[Bytes]:
        """Yield all bytes in their order. Raises ContainerError if a tensor is damaged."""
        yield np.frombuffer(self._own, np.uint8)
        for each in self._tensors:
            if matrix := self._matrices.get(each.name):
                with _damage(self._container, matrix):
                    for part in weight_parts(_read(self._container, matrix)):
                        yield to_bfloat16(part).view(np.uint8)
            else:
                yield self._container.tensor(each)
