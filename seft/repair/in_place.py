"""Base classes of the repair methods that replace the forward functions of the linears, and of their trainers."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from seft.config import RepairConfig
from seft.models.products import Handler, Product, intercept_products
from seft.models.targets import Target, count_nonzeros
from seft.repair.method import Method, Work
from seft.repair.product import Trainer, trained_product, with_bias_gradient
from seft.report import Reporter


class LinearTrainer(Trainer, Protocol):
    """Base of the trainers of one target, a linear layer that is pruned. Most change its weight matrix in place."""

    _target: Target
    _leaf: Tensor
    """The trained values, or an empty tensor if no gradient is accumulated in autograd."""

    @property
    def weight(self) -> Float[Tensor, "rows cols"]:
        """The weight matrix."""
        return self._target.weight

    @property
    def trained_values(self) -> int:
        """Number of trained values."""
        return len(self._leaf)

    def product(self, inputs: Float[Tensor, "*batch cols"], plain: Product) -> Float[Tensor, "*batch rows"]:
        """Return the linear's outputs with the present weights.

        `plain` is the forward function of the linear. The result is differentiable in the inputs and the trained
        values. The backward pass adds to the gradient that `take_gradient` returns.
        """
        return trained_product(inputs, self._leaf, self, plain)

    def input_gradient(self, left: Float[Tensor, "*batch rows"]) -> Float[Tensor, "*batch cols"]:
        """Return the gradient of the linear's inputs. `left` is the gradient of its outputs."""
        return left @ self.weight

    def take_gradient(self) -> Float[Tensor, "values"]:
        """Return the gradient accumulated since the last call, and reset it. It is zero if the linear got no tokens."""
        gradient, self._leaf.grad = self._leaf.grad, None
        return torch.zeros_like(self._leaf) if gradient is None else gradient

    def reactivated_count(self) -> int:
        """Return the number of weights that were zero when pruning ended and are nonzero now."""
        return 0

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors that are needed to resume."""

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the present state by saved tensors. Possible at any step."""


class SingleTrainer(LinearTrainer, Protocol):
    """Trains one target with an optimizer of its own."""

    def update(self, gradient: Float[Tensor, "values"], rate: float, weight_decay: float) -> None:
        """Take one optimizer step with this gradient."""


class InPlaceMethod(Method):
    """Base of the methods with one trainer per target. It has no topology events, and no optimizer."""

    def __init__(self, work: Work, linears: Mapping[str, LinearTrainer]) -> None:
        self.config: RepairConfig = work.config
        self._device: torch.device = work.model.device
        self._trainers = linears
        self._release = intercept_products(
            {target: _handler(target, linears[name]) for name, target in work.targets.items()}
        )

    @property
    def trained_values(self) -> int:
        """Number of trained values in all targets."""
        return sum(linear.trained_values for linear in self._trainers.values())

    @property
    def grown_zeros(self) -> int:
        """Number of weights that were zero when pruning ended and are nonzero now."""
        return sum(linear.reactivated_count() for linear in self._trainers.values())

    @property
    def sparsity(self) -> float:
        """Fraction of zeros in all targets."""
        nonzeros = weights = 0
        for linear in self._trainers.values():
            weight = linear.weight
            nonzeros, weights = nonzeros + count_nonzeros(weight), weights + weight.numel()
        return 1 - nonzeros / weights

    def take_gradients(self) -> list[Tensor]:
        """Return the accumulated gradient of each linear, and reset it."""
        return [linear.take_gradient() for linear in self._trainers.values()]

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of all linears that are needed to resume."""
        return {
            f"{name}/{part}": tensor for name, each in self._trainers.items() for part, tensor in each.tensors().items()
        }

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the present state of every linear by its saved tensors."""
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in self._trainers}
        for key, tensor in tensors.items():
            name, part = key.split("/")
            parts[name][part] = tensor
        for name, linear in self._trainers.items():
            linear.resume({part: tensor.to(self._device) for part, tensor in parts[name].items()})

    def finish(self, _: Reporter) -> None:
        """Restore the original forward functions of the modules."""
        self._release()


class OneByOne(InPlaceMethod):
    """Base of the methods in which each linear takes an optimizer step of its own."""

    def __init__(self, work: Work, linears: Mapping[str, SingleTrainer]) -> None:
        super().__init__(work, linears)
        self._single = linears.values()

    def update(self, gradients: Sequence[Tensor], rate: float, _: float) -> None:
        """Take one optimizer step in each linear with its gradient."""
        for linear, gradient in zip(self._single, gradients, strict=True):
            linear.update(gradient, rate, self.config.weight_decay)


def _handler(target: Target, linear: LinearTrainer) -> Handler:
    return lambda inputs, plain: with_bias_gradient(linear.product(inputs, plain), target.bias)
