"""The tensors of a model by name and shape, out of the headers of its files: no weight is read, and no torch needed."""

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
from seft.models.source import HUB_SECONDS, INDEX, REFUSED, SINGLE, Kind, ModelSource, answered

Shapes = Mapping[str, tuple[int, ...]]
MOST_BYTES = 25_000_000
"""Of a header: as many as the hub's own client takes."""


def shapes(source: ModelSource) -> Shapes:
    """Every tensor that the model's files hold. SourceError where they cannot be read, or the hub does not answer.

    Of a hub model whose files are not in the cache, the headers alone are asked for.
    """
    try:
        match source.kind:
            case Kind.GGUF:
                return read_shapes(_path(source))
            case Kind.FOLDER:
                return _of_folder(_path(source))
            case Kind.HUB:
                return _on_hub(source)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        told = f"the weights of {source.reference!r} have no readable header: {error!r}. Save the model again."
        raise SourceError(REFUSED, told) from error


def _path(source: ModelSource) -> Path:
    assert source.path is not None
    return source.path


def _of_folder(folder: Path) -> Shapes:
    found: dict[str, tuple[int, ...]] = {}
    for name in _files(folder):
        found |= _of_file(folder / name)
    return found


def _files(folder: Path) -> set[str]:
    """The safetensors files of a folder; none where it has no weights."""
    if (folder / INDEX).exists():
        return set(map(str, json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
    return {SINGLE} if (folder / SINGLE).exists() else set()


def of_header(read: Callable[[int, int], bytes]) -> dict[str, tuple[int, ...]]:
    """Of the tensors of one safetensors file. `read` gives so many bytes from a place on, or as many as there are."""
    (size,) = struct.unpack("<Q", read(0, 8).ljust(8, b"\0"))
    if not 0 < size <= MOST_BYTES:
        raise ValueError(f"it has {size} bytes, not 1 to {MOST_BYTES}")
    header = json.loads(read(8, size))
    return {name: tuple(map(int, value["shape"])) for name, value in header.items() if name != "__metadata__"}


def _of_file(path: Path) -> dict[str, tuple[int, ...]]:
    with path.open("rb") as file:
        return of_header(lambda start, size: os.pread(file.fileno(), size, start))


def _on_hub(source: ModelSource) -> Shapes:
    with suppress(LocalEntryNotFoundError):
        folder = Path(hub.snapshot_download(source.reference, revision=source.revision, local_files_only=True))
        if (files := _files(folder)) and all((folder / name).exists() for name in files):
            return _of_folder(folder)
    with answered(source.reference, source.revision):
        try:
            found = hub.HfApi(token=source.token).get_safetensors_metadata(
                source.reference, revision=source.revision, timeout=HUB_SECONDS
            )
        except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
            raise ValueError(str(error)) from error
    return {
        name: tuple(tensor.shape) for file in found.files_metadata.values() for name, tensor in file.tensors.items()
    }
