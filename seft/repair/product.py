"""The product of a linear under repair: the merged weight stays in place, is never copied, and has no gradient.

Forward is the linear's own product. Backward makes the gradient of the inputs, and hands the two sides of the weight's
gradient to whoever trains, who makes of them what it needs.
"""

from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from seft.models.products import Product


class Trainer(Protocol):
    """Whoever trains a weight through values of its own."""

    weight: Float[Tensor, "rows cols"]

    def gradient(self, left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens cols"]) -> Tensor:
        """The gradient of its values, from that of the outputs (`left`) and the inputs (`right`)."""


def trained_product(
    inputs: Float[Tensor, "*batch cols"], values: Tensor, trainer: Trainer, plain: Product
) -> Float[Tensor, "*batch rows"]:
    """What `plain`, the linear's own product, gives; differentiable in the inputs and the trainer's values alone."""
    outputs: Tensor = _Product.apply(inputs, values, trainer, plain)  # type: ignore[no-untyped-call]
    return outputs


class _Product(torch.autograd.Function):
    """`y = x W^T + b`, whose backward knows W as a constant but for the trained values, and b as a constant."""

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
        onward = gradient @ trainer.weight if ctx.needs_input_grad[0] else None
        return onward, trainer.gradient(gradient.flatten(0, -2), inputs.flatten(0, -2)), None, None
