"""The product of a linear under repair. The merged weight stays in place, is never copied, and has no gradient.

Forward is the linear's own product. Backward computes the gradient of the inputs, and passes the two factors of the
weight's gradient to the trainer, which computes the gradient of its values from them.
"""

from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from seft.models.products import Product


class Trainer(Protocol):
    """Trains a weight through values of its own."""

    weight: Float[Tensor, "rows cols"]

    def gradient(self, left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens cols"]) -> Tensor:
        """Return the gradient of the values, from the gradient of the outputs (`left`) and the inputs (`right`)."""


def trained_product(
    inputs: Float[Tensor, "*batch cols"], values: Tensor, trainer: Trainer, plain: Product
) -> Float[Tensor, "*batch rows"]:
    """Return the result of `plain`, the linear's own product; differentiable in the inputs and the trainer's values."""
    outputs: Tensor = _Product.apply(inputs, values, trainer, plain)  # type: ignore[no-untyped-call]
    return outputs


class _Product(torch.autograd.Function):
    """`y = x W^T + b`. For backward, W and b are constants except for the trained values."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Float[Tensor, "*batch cols"], _values: Tensor, trainer: Trainer, plain: Product
    ) -> Float[Tensor, "*batch rows"]:
        ctx.trainer = trainer
        ctx.save_for_backward(inputs)
        return plain(inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "*batch rows"]) -> tuple[Tensor | None, Tensor, None, None]:
        trainer: Trainer = ctx.trainer
        (inputs,) = ctx.saved_tensors
        input_gradient = gradient @ trainer.weight if ctx.needs_input_grad[0] else None
        return input_gradient, trainer.gradient(gradient.flatten(0, -2), inputs.flatten(0, -2)), None, None
