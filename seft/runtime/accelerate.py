"""Replaces the linear layers of a transformers model by layers that use the zeros of their weights.

The model is for inference only afterwards. Layers are replaced in place, one at a time, so that the memory of one dense
matrix is freed before the next one is compressed.
"""

import logging
from collections.abc import Iterable
from itertools import chain
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from seft.devices import trim_memory
from seft.errors import AccelerateError
from seft.models.targets import count_nonzeros, target_linears
from seft.native import kernels
from seft.runtime.compressed import (
    BLOCK,
    EXPANDED_FROM,
    Compressed,
    Values,
    compress,
    dense_struct,
    multiply,
    multiply_struct,
    require_exact,
)
from seft.runtime.huge_pages import HugePages

log = logging.getLogger(__name__)
LEAST_ZEROS = 0.3
"""Share of zeros from which a bfloat16 matrix is compressed. With fewer zeros the dense product is as fast.

At the level AVX2 the dense product is about as fast with any number of zeros. There, compression saves memory only.
"""
PRODUCTS = frozenset({nn.Linear.forward, Conv1D.forward})
"""Forward functions of layers that only multiply with their weight and add their bias."""
SAME_PRODUCT = frozenset({"FalconLinear"})
"""Names of layers with another forward function that computes the same."""
Model = TypeVar("Model", bound=nn.Module)


class SparseLinear(nn.Module):
    """A linear layer whose weight is compressed.

    `weight` has the shape and the dtype of the dense weight, and no values: some models read them before a product. It
    is not in the state dict.
    """

    def __init__(self, matrix: Compressed, dtype: torch.dtype) -> None:
        super().__init__()
        self.matrix = matrix
        self.weight = torch.empty(matrix.rows, matrix.cols, dtype=dtype, device="meta")
        self.in_features, self.out_features = matrix.cols, matrix.rows

    def forward(self, x: Float[Tensor, "... cols"]) -> Float[Tensor, "... rows"]:
        """Return the product with the weight, plus the bias. Raises AccelerateError if x needs a gradient."""
        _require_inference(x)
        return multiply(x.reshape(-1, self.in_features), self.matrix).view(*x.shape[:-1], self.out_features)

    def _save_to_state_dict(self, *_: Any) -> None:
        raise AccelerateError("an accelerated model cannot be saved: it has no plain weights. Save it before.")

    def extra_repr(self) -> str:
        """Return the sizes, for printing the model."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bytes={self.matrix.nbytes}"


class DenseLinear(nn.Module):
    """A linear layer whose bfloat16 weight is dense. Its product for few rows is faster than torch's."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self._bias = None if bias is None else bias.detach().float()
        self._struct = dense_struct(weight.detach(), self._bias)

    def forward(self, x: Float[Tensor, "... cols"]) -> Float[Tensor, "... rows"]:
        """Return the product with the weight, plus the bias. Raises AccelerateError if x needs a gradient."""
        _require_inference(x)
        flat = x.reshape(-1, x.shape[-1])
        if len(flat) >= EXPANDED_FROM or self.weight.dtype != torch.bfloat16:
            return nn.functional.linear(x, self.weight, self.bias)
        self._struct.values = self.weight.data_ptr()  # the parameter may have got other memory
        return multiply_struct(flat, self._struct).view(*x.shape[:-1], len(self.weight))


def _require_inference(x: Tensor) -> None:
    if x.requires_grad and torch.is_grad_enabled():
        raise AccelerateError("an accelerated model is for inference only; its input needs a gradient. Use no_grad.")


@torch.no_grad()
def accelerate(model: Model, values: Values | str = Values.BFLOAT16, *, least_zeros: float = LEAST_ZEROS) -> Model:
    """Replace the linear layers of a model, in place. Returns the model, on the same device: the CPU or CUDA.

    `bfloat16` compresses every layer with at least the share `least_zeros` of zeros, and changes no weight. `int8`
    compresses every layer. The head is treated like the layers. Matrices of stacked experts, and layers that compute
    more than a product and a bias, stay as they are.

    Raises AccelerateError if `values` is unknown, if the model is accelerated already or on another device, if Triton
    cannot compile for CUDA, if a weight is not finite or has another dtype than bfloat16 or float32, or if `bfloat16`
    would round a weight in a matrix that it compresses. After an error, no layer was replaced.
    """
    if values not in set(Values):
        raise AccelerateError(f"values must be {' or '.join(Values)}; it is {values!r}.")
    if any(isinstance(module, SparseLinear | DenseLinear) for module in model.modules()):
        raise AccelerateError(
            "a model must have its own linear layers; this one is accelerated already. Load it again."
        )
    values = Values(values)
    _require_usable_weights(model)
    whole: Any = model
    targets, memory = target_linears(model), HugePages()
    plain = {name: each for name, each in targets.items() if each.number is None and _is_product(each.module)}
    heads = [each for each in (whole.get_output_embeddings(),) if isinstance(each, nn.Linear)]
    plain_heads = [head for head in heads if _is_product(head)]
    if values is Values.BFLOAT16:
        weights = chain((each.weight for each in plain.values()), (head.weight for head in plain_heads))
        _require_exact(weights, least_zeros)
    for name, target in plain.items():
        if layer := _faster(target.weight, target.bias, values, least_zeros, memory):
            _replace(model, name, layer)
            target.module._parameters.clear()
    for head in plain_heads:
        if layer := _faster(head.weight, head.bias, values, least_zeros, memory):
            whole.set_output_embeddings(layer)
    if left := len(targets) - len(plain) + len(heads) - len(plain_heads):
        log.warning("%d matrices of experts or of layers with their own forward function stay dense", left)
    trim_memory()  # otherwise the heap keeps the memory of the dense weights
    return model.eval().requires_grad_(requires_grad=False)


def _require_usable_weights(model: nn.Module) -> None:
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1 or not {each.type for each in devices} <= {"cpu", "cuda"}:
        found = ", ".join(sorted(map(str, devices)))
        raise AccelerateError(
            f"a model must be on the CPU or on one CUDA device; it is on {found}. Use model.to('cpu')."
        )
    for name, parameter in model.named_parameters():
        _require_usable(name, parameter.detach())


def _is_product(module: nn.Module) -> bool:
    """Return whether a layer computes only the product with its weight, plus the bias."""
    return type(module).forward in PRODUCTS or type(module).__name__ in SAME_PRODUCT


def _require_usable(name: str, weight: Tensor) -> None:
    if weight.dtype not in kernels.DTYPES:
        raise AccelerateError(
            f"weights must be bfloat16 or float32; {name} is {weight.dtype}. Use model.to(torch.bfloat16)."
        )
    if weight.numel() and not torch.stack(torch.aminmax(weight)).isfinite().all():
        raise AccelerateError(
            f"weights must be finite numbers; {name} has NaN or infinite ones. Create the model again from its source."
        )


def _share_of_zeros(weight: Float[Tensor, "rows cols"]) -> float:
    return 1 - count_nonzeros(weight) / weight.numel()


def _require_exact(weights: Iterable[Float[Tensor, "rows cols"]], least_zeros: float) -> None:
    """Raise AccelerateError if one of the matrices would be compressed and bfloat16 would round it."""
    for weight in weights:
        if weight.dtype != torch.bfloat16 and _share_of_zeros(weight) >= least_zeros:
            require_exact(weight)


def _faster(
    weight: Float[Tensor, "rows cols"],
    bias: nn.Parameter | None,
    values: Values,
    least_zeros: float,
    memory: HugePages,
) -> nn.Module | None:
    """Return a faster layer for a weight, or None if there is none."""
    if values is Values.INT8 or _share_of_zeros(weight) >= least_zeros:
        own = None if bias is None else bias.cpu()
        host = memory if weight.device.type == "cpu" else None
        return SparseLinear(compress(weight.cpu(), own, values, host).to(weight.device), weight.dtype)
    fits = (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and weight.is_contiguous()
        and weight.shape[1] % BLOCK == 0
    )
    if fits and kernels.level() in {kernels.Level.AVX2, kernels.Level.AVX512}:
        weight.data = memory.copy(weight.data)  # also changes the embedding, if a head shares this weight
        return DenseLinear(weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, False), bias)
    return None


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, key = name.rpartition(".")
    setattr(model.get_submodule(parent), key, layer)
