"""Reads the names and shapes of a model's tensors from the headers of its files.

Reads no weights and needs no torch.
"""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import huggingface_hub as hub
from huggingface_hub.errors import LocalEntryNotFoundError

from seft.errors import SourceError
from seft.models.gguf_header import read_shapes
from seft.models.hub_files import REFUSED, hub_errors, read_part
from seft.models.limits import MAX_FILE_BYTES
from seft.models.model_files import weight_files
from seft.models.safetensors_header import Header, merge, read_header
from seft.models.source import Kind, ModelSource, folder_sizes, read_small

Shapes = Mapping[str, tuple[int, ...]]
READERS = 8
"""Number of headers that are read from the hub at the same time."""


def shapes(source: ModelSource) -> Shapes:
    """Return the shape of every tensor in the model's files.

    Downloads only the headers of a hub model that is not on this machine, and stores nothing. Raises SourceError if
    the files cannot be read, if their headers are malformed, or if the hub does not answer.
    """
    try:
        match source.kind:
            case Kind.GGUF:
                return read_shapes(_path(source))
            case Kind.HUB if source.path is None:
                return _hub_shapes(source)
            case _:
                return _folder_shapes(source.reference, _path(source))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        message = f"the weights of {source.reference!r} have no readable header: {error!r}. Save the model again."
        raise SourceError(REFUSED, message) from error


def _path(source: ModelSource) -> Path:
    assert source.path is not None
    return source.path


def _folder_shapes(reference: str, folder: Path) -> Shapes:
    names = weight_files(reference, folder_sizes(folder), lambda name: read_small(folder / name))
    return merge(file_header(folder / name) for name in names)


def file_header(path: Path) -> Header:
    """Return the header of a safetensors file. Raises ValueError or another error if it is malformed."""
    with path.open("rb") as file:
        return read_header(lambda start, size: os.pread(file.fileno(), size, start), os.fstat(file.fileno()).st_size)


def _hub_shapes(source: ModelSource) -> Shapes:
    with suppress(LocalEntryNotFoundError, SourceError):
        folder = hub.snapshot_download(
            source.reference, revision=source.revision, allow_patterns=source.files(), local_files_only=True
        )
        return _folder_shapes(source.reference, Path(folder))
    with hub_errors(source.reference, source.revision):
        return merge(_hub_headers(source))


def _hub_headers(source: ModelSource) -> Iterator[Header]:
    """Yield the headers of the weight files. At most `READERS` are in memory before `merge` checks their limits."""
    read = partial(read_part, source.reference, revision=source.revision, token=source.token)
    names = weight_files(source.reference, source.sizes, lambda name: read(name, 0, MAX_FILE_BYTES))
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(names), READERS):
            batch = names[start : start + READERS]
            yield from pool.map(lambda name: read_header(partial(read, name), source.sizes[name]), batch)
