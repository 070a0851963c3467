"""Reads the names and shapes of a model's tensors from the headers of its files.

Reads no weights and needs no torch.
"""

import json
import os
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import huggingface_hub as hub
from huggingface_hub.errors import LocalEntryNotFoundError, NotASafetensorsRepoError, SafetensorsParsingError

from seft.errors import SourceError
from seft.models.gguf_header import read_shapes
from seft.models.source import HUB_SECONDS, INDEX, REFUSED, SINGLE, Kind, ModelSource, hub_errors

Shapes = Mapping[str, tuple[int, ...]]
MAX_HEADER_BYTES = 25_000_000
"""Largest header of a safetensors file, in bytes. The client of the hub has the same limit."""


def shapes(source: ModelSource) -> Shapes:
    """Return the shape of every tensor in the model's files.

    Downloads only the headers of a hub model that is not cached. Raises SourceError if the files cannot be read or the
    hub does not answer.
    """
    try:
        match source.kind:
            case Kind.GGUF:
                return read_shapes(_path(source))
            case Kind.FOLDER:
                return _folder_shapes(_path(source))
            case Kind.HUB:
                return _hub_shapes(source)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        message = f"the weights of {source.reference!r} have no readable header: {error!r}. Save the model again."
        raise SourceError(REFUSED, message) from error


def _path(source: ModelSource) -> Path:
    assert source.path is not None
    return source.path


def _folder_shapes(folder: Path) -> Shapes:
    merged: dict[str, tuple[int, ...]] = {}
    for name in _files(folder):
        merged |= _file_shapes(folder / name)
    return merged


def _files(folder: Path) -> set[str]:
    """Return the names of the safetensors files in a folder; an empty set if there are none."""
    if (folder / INDEX).exists():
        return set(map(str, json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
    return {SINGLE} if (folder / SINGLE).exists() else set()


def parse_shapes(read: Callable[[int, int], bytes]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in one safetensors file.

    `read(start, size)` returns at most `size` of its bytes.
    """
    (size,) = struct.unpack("<Q", read(0, 8).ljust(8, b"\0"))
    if not 0 < size <= MAX_HEADER_BYTES:
        raise ValueError(f"a safetensors header must have 1 to {MAX_HEADER_BYTES} bytes; this one has {size}")
    header = json.loads(read(8, size))
    return {name: tuple(map(int, value["shape"])) for name, value in header.items() if name != "__metadata__"}


def _file_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with path.open("rb") as file:
        return parse_shapes(lambda start, size: os.pread(file.fileno(), size, start))


def _hub_shapes(source: ModelSource) -> Shapes:
    with suppress(LocalEntryNotFoundError):
        folder = Path(hub.snapshot_download(source.reference, revision=source.revision, local_files_only=True))
        if (files := _files(folder)) and all((folder / name).exists() for name in files):
            return _folder_shapes(folder)
    with hub_errors(source.reference, source.revision):
        try:
            metadata = hub.HfApi(token=source.token).get_safetensors_metadata(
                source.reference, revision=source.revision, timeout=HUB_SECONDS
            )
        except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
            raise ValueError(str(error)) from error
    return {
        name: tuple(tensor.shape) for file in metadata.files_metadata.values() for name, tensor in file.tensors.items()
    }
