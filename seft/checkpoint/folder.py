"""What a model folder contains, read from its files with NumPy: its zeros, and how it was made. Needs no torch.

Torch and transformers take seconds to import, which is longer than reading most models.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seft.checkpoint.counts import Count, Sparsity
from seft.checkpoint.facts import SPARSITY, Facts, Record
from seft.errors import ConfigError, SourceError
from seft.models.hub_files import REFUSED
from seft.models.model_files import weight_files
from seft.models.safetensors_header import BITS, Tensor
from seft.models.shapes import file_header
from seft.models.source import COMPACT, ModelSource, find, folder_sizes, read_small
from seft.models.tensors import HEAD, TIED, expert_count, is_pruned, place_in_blocks, text_config

CHUNK = 1 << 22
"""Values that are counted at a time, so that memory use does not depend on the size of a tensor."""
SIGNED_ZERO = frozenset({"F64", "F32", "F16", "BF16", "F8_E5M2", "F8_E4M3"})
"""Floating-point dtypes that have -0.0. In -0.0, only the first bit is 1."""
UNITS: dict[int, type[np.unsignedinteger[Any]]] = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
"""Unsigned integers by their number of bits. The values of a tensor are read as these integers."""


Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class _Pruned(NamedTuple):
    """A pruned tensor: the number of its block, its name and the counts of its matrices."""

    block: int
    name: str
    counts: list[Count]


def inspect(folder: Path) -> tuple[Sparsity, Record | None]:
    """Return the counts of zeros in the files of a folder, and the content of its `sparsity.json` or None.

    A layer has the name that its tensor has in the files. `sparsity.json` may have other names for experts. Raises
    ConfigError or SourceError if the folder has no model, and VerifyError if `sparsity.json` is damaged.
    """
    source = find_folder(folder)
    return count_zeros(folder, source.config), Record.read(folder) if (folder / SPARSITY).exists() else None


def changed_part(counted: Sparsity, record: Record) -> str | None:
    """Return the name of a part whose zeros in the files are not those of `sparsity.json`, or None.

    Then another program wrote the weights, and the record does not describe them.
    """
    recorded, actual = record.sparsity.by_name, counted.by_name
    return next((name for name in actual if name in recorded and actual[name] != recorded[name]), None)


def recorded_facts(folder: Path) -> Facts | None:
    """Return how a pruned folder was made, or None if it has no `sparsity.json`.

    Raises ConfigError if the folder is repaired already, or if its files do not have the zeros of `sparsity.json`.
    """
    if not (folder / SPARSITY).exists():
        return None
    counted, record = inspect(folder)
    assert record
    if record.facts.repair:
        way_out = "Give the folder that seft prune wrote."
        raise ConfigError("folder", "must be pruned and not repaired yet", str(folder), way_out)
    if part := changed_part(counted, record):
        rule = f"must have the zeros that its {SPARSITY} records for {part}, {record.sparsity.by_name[part].zeros}"
        way_out = f"Prune the model again, or delete {SPARSITY} if another tool pruned it: its zeros are then counted."
        raise ConfigError("folder", rule, counted.by_name[part].zeros, way_out, lead="it has")
    return record.facts


def find_folder(path: Path) -> ModelSource:
    """Return the model in a folder. Raises ConfigError if the folder does not exist."""
    if not path.is_dir():
        compact = path.is_file() and path.suffix == COMPACT
        way_out = f"Restore the folder with `seft expand {path} FOLDER`." if compact else "Check the path."
        raise ConfigError("folder", "must be a folder with a model", str(path), way_out)
    return find(str(path.resolve()))


def count_zeros(folder: Path, config: Mapping[str, Any]) -> Sparsity:
    """Return the counts of weights and zeros of a Hugging Face folder. `config` is the content of its config.json.

    Raises SourceError if the files have no blocks with linear layers, or a dtype whose zeros cannot be counted.
    """
    values, experts = text_config(config), expert_count(config)
    model, lists = Count(0, 0), dict[str, list[_Pruned]]()
    for content, name, tensor in tensors(folder):
        if name == HEAD and values.get(TIED) is True:
            continue
        place = place_in_blocks(name)
        pruned = place is not None and is_pruned(place[2], tensor.shape, experts)
        parts = tensor.shape[0] if pruned and len(tensor.shape) == 3 else 1
        counts = [_zeros(name, part, tensor.dtype) for part in np.split(content[tensor.begin : tensor.end], parts)]
        model = sum(counts, model)
        if place and pruned:
            lists.setdefault(place[0], []).append(_Pruned(place[1], name.removesuffix(".weight"), counts))
    if not lists:
        message = f"a model must have blocks with linear layers; {str(folder)!r} has none. Give another folder."
        raise SourceError(REFUSED, message)
    decoder = max(lists.values(), key=lambda found: sum(count.weights for each in found for count in each.counts))
    layers: dict[str, Count] = {}
    for each in sorted(decoder, key=lambda each: each.block):
        stack = len(each.counts) > 1
        layers |= {f"{each.name}.{number}" if stack else each.name: count for number, count in enumerate(each.counts)}
    return Sparsity(layers, sum(layers.values(), Count(0, 0)), model)


def tensors(folder: Path) -> Iterator[tuple[Bytes, str, Tensor]]:
    """Yield the bytes of a file and the name and place of a tensor in it, for every tensor of the model."""
    for name in weight_files(str(folder), folder_sizes(folder), lambda name: read_small(folder / name)):
        path = folder / name
        try:
            header = file_header(path)
        except ValueError as error:
            message = f"{path} must be a readable safetensors file: {error}. Create or download the model again."
            raise SourceError(REFUSED, message) from error
        content = np.memmap(path, np.uint8, "r")
        for tensor_name, tensor in header.tensors.items():
            yield content, tensor_name, tensor


def _zeros(name: str, data: Bytes, dtype: str) -> Count:
    """Return the number of zeros of a tensor, from its bytes."""
    unit = UNITS.get(BITS[dtype])
    if unit is None:
        message = f"the zeros of a tensor of the dtype {dtype} cannot be counted; {name!r} is one. Save it as bfloat16."
        raise SourceError(REFUSED, message)
    values = data.view(unit)
    mask = unit(np.iinfo(unit).max >> (dtype in SIGNED_ZERO))
    nonzeros = sum(
        int(np.count_nonzero(values[start : start + CHUNK] & mask)) for start in range(0, len(values), CHUNK)
    )
    return Count(len(values) - nonzeros, len(values))
