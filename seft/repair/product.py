"""The forward and backward pass of a linear under repair. The weight matrix itself gets no gradient.

The forward pass calls a function that returns the linear's outputs with the trained weights. The backward pass gives
the inputs and the gradient of the outputs to the trainer. From them the trainer computes the gradient of the inputs and
the gradient of its trained values.
"""

from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from seft.models.products import Product


class Trainer(Protocol):
    """Trains some values that determine the weight matrix of a linear."""

    def input_gradient(self, left: Float[Tensor, "*batch rows"]) -> Float[Tensor, "*batch cols"]:
        """Return the gradient of the linear's inputs. `left` is the gradient of its outputs."""

    def gradient(self, left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens cols"]) -> Tensor:
        """Return the gradient of the trained values.

        `left` is the gradient of the linear's outputs, `right` are its inputs.
        """


def trained_product(
    inputs: Float[Tensor, "*batch cols"], values: Tensor, trainer: Trainer, plain: Product
) -> Float[Tensor, "*batch rows"]:
    """Return `plain(inputs)`. `plain` returns the linear's outputs with the present weights.

    The result is differentiable in the inputs and in `values`, the trained values of `trainer`.
    """
    outputs: Tensor = _Product.apply(inputs, values, trainer, plain)  # type: ignore[no-untyped-call]
    return outputs


def with_bias_gradient(
    outputs: Float[Tensor, "*batch rows"], bias: Float[Tensor, "rows"] | None
) -> Float[Tensor, "*batch rows"]:
    """Return the outputs of a linear, differentiable in its bias too if the bias is trained.

    `trained_product` treats the bias as a constant.
    """
    if bias is None or not bias.requires_grad:
        return outputs
    result: Tensor = _BiasGradient.apply(outputs, bias)  # type: ignore[no-untyped-call]
    return result


class _BiasGradient(torch.autograd.Function):
    """Returns the outputs as they are; they contain the bias. Its backward pass computes the gradient of the bias."""

    @staticmethod
    def forward(_: Any, outputs: Float[Tensor, "*batch rows"], _bias: Tensor) -> Float[Tensor, "*batch rows"]:
        return outputs.view_as(outputs)

    @staticmethod
    @once_differentiable
    def backward(_: Any, gradient: Float[Tensor, "*batch rows"]) -> tuple[Tensor, Tensor]:
        return gradient, gradient.flatten(0, -2).sum(0)


class _Product(torch.autograd.Function):
    """`y = x W^T + b`. The backward pass treats W and b as constants, except for the trained values."""

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
        input_gradient = trainer.input_gradient(gradient) if ctx.needs_input_grad[0] else None
        return input_gradient, trainer.gradient(gradient.flatten(0, -2), inputs.flatten(0, -2)), None, None
