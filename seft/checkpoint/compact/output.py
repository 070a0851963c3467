"""The output formats `compact`, `compact_int8` and `compact_nf4`: containers with the dense model of a checkpoint.

The files that belong to all formats describe the whole checkpoint, so they are beside the container and not in it. Its
bytes depend on the model alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from seft.checkpoint.compact.dense import Matrix, integer_matrices, read_matrix
from seft.checkpoint.compact.index import FileEntry
from seft.checkpoint.compact.quantised import IntegerKind, Rows, quantise_blocks, quantise_rows
from seft.checkpoint.compact.reader import Container, open_container
from seft.checkpoint.compact.writer import write
from seft.config import OutputFormat, format_of
from seft.errors import ContainerError, SourceError, VerifyError
from seft.models.shapes import file_header

THREADS = 4
"""Largest number of threads. Each needs about 20 MB."""
_INTEGERS: Mapping[OutputFormat, IntegerKind] = {OutputFormat.COMPACT_INT8: "int8", OutputFormat.COMPACT_NF4: "nf4"}
_AGAIN = "Do not publish it; write it again."


def write_compact(folder: Path, format_: OutputFormat, file: BinaryIO) -> None:
    """Write the model in a folder as a container. Raises ContainerError if it exceeds a limit of the format."""
    write(folder, file, names=_model_files(folder), integers=_INTEGERS.get(format_), threads=THREADS)


def verify_compact(folder: Path, file: Path, format_: OutputFormat) -> None:
    """Compare a container with the folder from which it was written. Raises VerifyError.

    Every byte must be equal. Matrices of integers must be those that the folder gives.
    """
    expected = _model_files(folder)
    try:
        with open_container(file) as container:
            if names := expected ^ {each.name for each in container.files}:
                raise VerifyError(f"{file.name} must have the files of the model; {min(names)} differs. {_AGAIN}")
            for each in container.files:
                matrices = integer_matrices(container, each)
                if format_ in _INTEGERS and each.tensors:
                    wrong = _wrong_tensor(folder / each.name, container, each, matrices)
                else:
                    wrong = _wrong_bytes(folder / each.name, container, each)
                if wrong:
                    raise VerifyError(f"{wrong} in {file.name} must have the values of the folder. {_AGAIN}")
    except (ContainerError, SourceError) as error:
        raise VerifyError(str(error)) from error


def _wrong_bytes(path: Path, container: Container, file: FileEntry) -> str | None:
    """Return the name of a file that differs from that of the folder, or None."""
    with path.open("rb") as original:
        for content in container.contents(file, threads=THREADS):
            if not np.array_equal(np.frombuffer(original.read(len(content)), np.uint8), content):
                return file.name
        return file.name if original.read(1) else None


def _wrong_tensor(path: Path, container: Container, file: FileEntry, matrices: Mapping[str, Matrix]) -> str | None:
    """Return the name of a tensor that differs from what the file of the folder gives, or None."""
    content, stored = np.memmap(path, np.uint8, "r"), {each.name: each for each in file.tensors}
    for name, tensor in file_header(path).tensors.items():
        original = content[tensor.begin : tensor.end]
        if name not in stored or stored[name].shape != tensor.shape:
            right = False
        elif matrix := matrices.get(name):
            found = read_matrix(container, matrix)
            quantise = quantise_rows if isinstance(found, Rows) else quantise_blocks
            made = quantise(original.view(np.uint16), tensor.shape[-1])
            right = np.array_equal(found.values, made.values) and np.array_equal(found.scales, made.scales)
        else:
            right = np.array_equal(original, container.tensor(stored[name]))
        if not right:
            return name
    return None


def _model_files(folder: Path) -> set[str]:
    """Return the names of the files that a container of this folder has, relative to the folder."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    return {name for name in names if format_of(name) is OutputFormat.DENSE}
