"""Stores pruned weights in one small file: a bitmask and the exact nonzero values of every target.

A target is a linear layer that is pruned. A run resumes from this file instead of pruning again. Weights that pruning
does not change (embeddings, norms, biases) are not stored. Users get the format of `seft.checkpoint.export`, not this
one.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Shaped, UInt8
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from seft.checkpoint.outputs import disk_errors
from seft.errors import StateError
from seft.models.targets import target_linears


def save_pruned(model: nn.Module, path: Path) -> None:
    """Write the weights of all targets to the file `path`, in their present dtype."""
    tensors: dict[str, Tensor] = {}
    for name, target in target_linears(model).items():
        weight = target.weight
        kept = weight != 0
        tensors[f"{name}.kept"] = pack_bits(kept)
        tensors[f"{name}.values"] = weight[kept].cpu()
    with disk_errors(path):
        save_file(tensors, path)


@torch.no_grad()
def load_pruned(model: nn.Module, path: Path) -> None:
    """Load the weights in the file `path` into a model of the same shape and dtype, in place. -0.0 becomes 0.0.

    Raises StateError if the file belongs to another model. Then some weights may already be overwritten, so load the
    model again.
    """
    targets = target_linears(model)
    with safe_open(path, "pt") as file:
        expected = {f"{name}.{part}" for name in targets for part in ("kept", "values")}
        if set(file.keys()) != expected:
            odd = sorted(set(file.keys()) ^ expected)[0]
            raise StateError(
                f"{path} must contain exactly the linear layers of this model; the tensor {odd} is missing or extra."
                " Prune this model again."
            )
        for name, target in targets.items():
            _fill(name, target.weight, file.get_tensor(f"{name}.kept"), file.get_tensor(f"{name}.values"))


def _fill(name: str, weight: Shaped[Tensor, "rows cols"], kept: UInt8[Tensor, "rows bytes"], values: Tensor) -> None:
    rows, cols = weight.shape
    if kept.shape != (rows, -(-cols // 8)) or values.dtype != weight.dtype:
        raise StateError(
            f"{name} must be {rows} x {cols} of {weight.dtype}; the file has a mask of {tuple(kept.shape)} bytes and"
            f" values of {values.dtype}. Load the model with the shape and dtype of the saved state."
        )
    mask = unpack_bits(kept, cols)
    if int(mask.sum()) != len(values):
        raise StateError(
            f"{name} must have one value for each of {int(mask.sum())} nonzeros; it has {len(values)}. Prune again."
        )
    weight.zero_()
    weight[mask.to(weight.device)] = values.to(weight.device)


def pack_bits(mask: Bool[Tensor, "rows cols"]) -> UInt8[Tensor, "rows bytes"]:
    """Return the mask with eight columns per byte, the first column in the highest bit. Each row starts a new byte."""
    return torch.from_numpy(np.packbits(mask.contiguous().cpu().numpy(), axis=1))


def unpack_bits(packed: UInt8[Tensor, "rows bytes"], cols: int) -> Bool[Tensor, "rows cols"]:
    """Return the mask from a result of `pack_bits`, with `cols` columns."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=1, count=cols)).bool()
