"""The output format `compact`: a container with the files of the dense model in a checkpoint folder.

The files that belong to all formats describe the whole checkpoint, so they are beside the container and not in it. Its
bytes depend on the model alone.
"""

from pathlib import Path
from typing import BinaryIO

import numpy as np

from seft.checkpoint.compact.reader import open_container
from seft.checkpoint.compact.writer import write
from seft.config import OutputFormat, format_of
from seft.errors import ContainerError, SourceError, VerifyError

THREADS = 4
"""Largest number of threads. Each needs about 20 MB."""


def write_compact(folder: Path, _: OutputFormat, file: BinaryIO) -> None:
    """Write the model in a folder as a container. Raises ContainerError if it exceeds a limit of the format."""
    write(folder, file, names=_model_files(folder), threads=THREADS)


def verify_compact(folder: Path, file: Path, _: OutputFormat) -> None:
    """Compare a container with the folder from which it was written, byte by byte. Raises VerifyError."""
    expected = _model_files(folder)
    try:
        with open_container(file) as container:
            if names := expected ^ {each.name for each in container.files}:
                raise VerifyError(f"{file.name} must have the files of the model; {min(names)} differs. {_AGAIN}")
            for each in container.files:
                with (folder / each.name).open("rb") as original:
                    for content in container.contents(each, threads=THREADS):
                        if not np.array_equal(np.frombuffer(original.read(len(content)), np.uint8), content):
                            raise VerifyError(f"{each.name} in {file.name} must have the folder's bytes. {_AGAIN}")
                    if original.read(1):
                        raise VerifyError(f"{each.name} in {file.name} must have all bytes of the folder. {_AGAIN}")
    except (ContainerError, SourceError) as error:
        raise VerifyError(str(error)) from error


_AGAIN = "Do not publish it; write it again."


def _model_files(folder: Path) -> set[str]:
    """Return the names of the files that a container of this folder has, relative to the folder."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    return {name for name in names if format_of(name) is OutputFormat.DENSE}
