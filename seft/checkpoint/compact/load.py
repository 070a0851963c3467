"""Gives a transformers model straight from a compact container, tensor by tensor. The dense file is never on disk."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

from seft.checkpoint.compact.byte_sources import is_address
from seft.checkpoint.compact.expanded import Matrix, integer_kind, integer_matrices, matrix_weights
from seft.checkpoint.compact.index import MAGIC, FileEntry, TensorEntry
from seft.checkpoint.compact.quantised import IntegerKind
from seft.checkpoint.compact.reader import Container, open_container
from seft.config import OutputFormat
from seft.devices import require_device
from seft.errors import ContainerError
from seft.models import load as dense
from seft.models.model_files import CONFIG, is_read, is_weights, read_model_files, require_size, weight_files
from seft.models.source import COMPACT, Kind, ModelSource, find

MAX_TEXTS = 128 << 20
"""Largest total size of the tokenizer and the configurations of a model, in bytes."""
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""The dtypes of the tensors of a model that transformers loads."""
_WEIGHTS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class LazyTensor:
    """A tensor that is read when transformers asks for it by `tensor[...]`. A matrix of integers becomes float32."""

    def __init__(self, container: Container, entry: TensorEntry, integers: Matrix | None) -> None:
        self._container, self._entry, self._integers = container, entry, integers

    @property
    def size(self) -> int:
        """Number of values of the tensor."""
        return math.prod(self._entry.shape)

    def __getitem__(self, key: EllipsisType) -> Tensor:
        """Return the tensor. Raises ContainerError if it is damaged."""
        if self._integers:
            weights = matrix_weights(self._container, self._integers)
            return torch.from_numpy(weights).reshape(self._entry.shape)
        return as_torch(self._container, self._entry)


def load(reference: str | Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> Any:
    """Return a transformers model in evaluation mode, from a compact container or a dense model.

    A container is a path, a web address, `s3://bucket/key`, or a folder with such a file and no config.json.
    Everything else is a folder, a GGUF file or a hub id. `dtype` is the dtype of the weights, by default the one in
    config.json. Raises ConfigError if there is no such device, SourceError if there is no such model or transformers
    cannot load it, and ContainerError if a tensor is damaged.
    """
    require_device(device)
    if path := container_of(reference):
        with _opened(path) as (container, source):
            tensors = _tensors(container)
            return dense.load_tensors(source, tensors, device=device, dtype=dtype or _dtype(source.config))
    source = find(str(reference))
    return dense.load_model(source, device=device, dtype=dtype or _dtype(source.config))


def load_whole(
    reference: str, *, dtype: torch.dtype, int8: torch.dtype | None = None
) -> tuple[dense.Loaded, IntegerKind | None]:
    """Return a model with its tokenizer and source on the CPU, and how its matrices are stored if they are integers.

    The weights are in `dtype`, or in the dtype `int8` if it is given and the matrices are stored as int8. Opens a
    container once. Raises the errors of `load`.
    """
    path = container_of(reference)
    if path is None:
        return dense.load(find(reference), dtype=dtype, keep_buffers=False), None
    with _opened(path) as (container, source):
        kinds = (integer_kind(container, file) for file in _root_files(container).values())
        kind = next((each for each in kinds if each), None)
        tokenizer, chosen = dense.load_tokenizer(source), int8 if int8 and kind == "int8" else dtype
        model = dense.load_tensors(source, _tensors(container), device="cpu", dtype=chosen)
        return dense.Loaded(model, tokenizer, source), kind


def load_tokenizer(reference: str | Path) -> Any:
    """Return the tokenizer of a model. Downloads only the tokenizer and the configuration of a remote container."""
    if path := container_of(reference):
        with _opened(path) as (_, source):
            return dense.load_tokenizer(source)
    return dense.load_tokenizer(find(str(reference)))


def container_of(reference: str | Path) -> str | Path | None:
    """Return the container that a reference names, or None if it names a dense model.

    A folder without config.json names its container, because a downloaded checkpoint may have no dense model.
    """
    if isinstance(reference, str) and is_address(reference):
        return reference
    folder = Path(reference)
    with suppress(RuntimeError):  # the system knows no user of this name
        folder = folder.expanduser()
    if _is_container(folder):
        return folder
    if _is_file(folder / CONFIG):
        return None
    paths = (folder / str(each.file) for each in OutputFormat if each.is_compact)
    return next((path for path in paths if _is_file(path)), None)


def _is_container(path: Path) -> bool:
    """Return whether a path is a compact container, by its name or first bytes."""
    if not _is_file(path):
        return False
    if path.suffix == COMPACT:
        return True
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _is_file(path: Path) -> bool:
    """Return whether a path is a file. Returns False for a name that the system does not allow."""
    try:
        return path.is_file()
    except OSError:
        return False


def as_torch(container: Container, entry: TensorEntry) -> Tensor:
    """Return a tensor of a container with its dtype and shape."""
    dtype = _DTYPES.get(entry.dtype)
    if dtype is None:
        raise ContainerError(
            f"a tensor of a model must have a dtype of torch; {entry.name!r} has {entry.dtype}. Expand it."
        )
    return torch.from_numpy(container.tensor(entry)).view(dtype).reshape(entry.shape)


@contextmanager
def _opened(reference: str | Path) -> Iterator[tuple[Container, ModelSource]]:
    """Yield a container and the model in it. The folder of the model has its files except those with weights."""
    with open_container(reference) as container, TemporaryDirectory(prefix="seft-compact-") as name:
        folder, files = Path(name), _root_files(container)
        sizes = {name: file.size for name, file in files.items()}
        config = read_model_files(container.name, sizes, lambda name: container.own_bytes(files[name])).config
        texts = {name: file for name, file in files.items() if is_read(name) and not is_weights(name)}
        require_size(container.name, sum(sizes[name] for name in texts), MAX_TEXTS)
        for text, file in texts.items():
            (folder / text).write_bytes(container.own_bytes(file))
        yield container, ModelSource(container.name, Kind.FOLDER, folder, None, config, None)


def _root_files(container: Container) -> dict[str, FileEntry]:
    """Return the files outside of subfolders, by name. A loader reads only these."""
    return {file.name: file for file in container.files if "/" not in file.name}


def _tensors(container: Container) -> Mapping[str, LazyTensor]:
    """Return all tensors of the files with weights. Reads the headers of these files to check the index.

    Raises ContainerError if the integers would become too many bytes.
    """
    files, tensors, size = _root_files(container), dict[str, LazyTensor](), container.size
    sizes = {name: file.size for name, file in files.items()}
    for name in weight_files(container.name, sizes, lambda name: container.own_bytes(files[name])):
        file = files[name]
        if not file.tensors:
            message = f"{name} in {container.name} must be a safetensors file within the limits of a container."
            raise ContainerError(message)
        integers = integer_matrices(container, file)
        for each in file.tensors:
            if each.name not in integers:
                dense.require_floats(container.name, each.name, each.dtype, each.shape)
        size += sum((torch.float32.itemsize - 1) * each.values.part.size for each in integers.values())
        hidden = {matrix.scales.name for matrix in integers.values()}
        tensors |= {
            each.name: LazyTensor(container, each, integers.get(each.name))
            for each in file.tensors
            if each.name not in hidden
        }
    container.require_expansion(size)
    return tensors


def _dtype(config: Mapping[str, Any]) -> torch.dtype:
    """Return the dtype that a configuration names, or float32."""
    inner = config.get("text_config")
    for values in (config, inner if isinstance(inner, dict) else {}):
        name = values.get("dtype", values.get("torch_dtype"))
        if isinstance(name, str) and name in _WEIGHTS:
            return _WEIGHTS[name]
    return torch.float32
