"""The output formats `compact`, `compact_int8` and `compact_nf4`: containers with the dense model of a checkpoint.

The files that belong to all formats describe the whole checkpoint, so they are beside the container and not in it. The
bytes of a container depend on the model alone.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from seft.checkpoint.compact.byte_sources import ByteSource
from seft.checkpoint.compact.index import FileEntry
from seft.checkpoint.compact.quantised import IntegerKind, QuantisedFile
from seft.checkpoint.compact.reader import Container
from seft.checkpoint.compact.writer import write
from seft.checkpoint.outputs import UNFINISHED
from seft.config import OutputFormat, format_of
from seft.errors import ContainerError, SourceError, VerifyError
from seft.models.model_files import CONFIG
from seft.models.shapes import file_header
from seft.models.tensors import expert_count

THREADS = 4
"""Largest number of threads. Each needs about 20 MB."""
_INTEGERS: Mapping[OutputFormat, IntegerKind] = {OutputFormat.COMPACT_INT8: "int8", OutputFormat.COMPACT_NF4: "nf4"}
_AGAIN = "Do not publish it; write it again."


def write_compact(folder: Path, format_: OutputFormat, file: BinaryIO) -> None:
    """Write the model in a folder as a container.

    Raises ContainerError if it exceeds a limit of the format or has a weight that is not finite, and ConfigError if no
    matrix can become integers.
    """
    write(folder, file, names=_model_files(folder), integers=_INTEGERS.get(format_), threads=THREADS)


def verify_compact(folder: Path, file: ByteSource, format_: OutputFormat) -> None:
    """Compare a container with the folder from which it was written, byte by byte. Raises VerifyError.

    Matrices of integers are made again from the folder.
    """
    expected, kind, name = _model_files(folder), _INTEGERS.get(format_), Path(file.name).name
    experts = expert_count(json.loads((folder / CONFIG).read_bytes())) if kind else 0
    try:
        container = Container(file)
        if names := expected ^ {each.name for each in container.files}:
            raise VerifyError(f"{name} must have the files of the model; {min(names)} differs. {_AGAIN}")
        for each in container.files:
            if kind and each.tensors:
                path = folder / each.name
                made = QuantisedFile(path, file_header(path), kind, experts)
                wrong = _wrong_tensor(made, container, each)
            else:
                wrong = _wrong_file(folder, container, each)
            if wrong:
                raise VerifyError(f"{wrong} in {name} must have the values of the folder. {_AGAIN}")
    except (ContainerError, SourceError) as error:
        raise VerifyError(str(error)) from error


def _wrong_file(folder: Path, container: Container, file: FileEntry) -> str | None:
    """Return the name of a file if it differs from the file in the folder, or None."""
    with (folder / file.name).open("rb") as original:
        for content in container.contents(file, threads=THREADS):
            if not np.array_equal(np.frombuffer(original.read(len(content)), np.uint8), content):
                return file.name
        return file.name if original.read(1) else None


def _wrong_tensor(made: QuantisedFile, container: Container, file: FileEntry) -> str | None:
    """Return the name of a header or tensor that differs from the folder after conversion to integers, or None."""
    if container.own_bytes(file) != made.own:
        return file.name
    for each in file.tensors:
        begin = made.tensors[each.name].begin
        if container.tensor(each).tobytes() != made.read(begin, each.part.size):
            return each.name
    return None


def _model_files(folder: Path) -> set[str]:
    """Return the names of the files that a container of this folder has, relative to the folder."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    return {name for name in names if format_of(name) is OutputFormat.DENSE and not name.startswith(UNFINISHED)}
