"""What methods share that keep the trained weights merged in place: one trainer for each target, and one state."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from seft.config import RepairConfig
from seft.models.products import Product, intercept_products
from seft.repair.method import Work
from seft.report import Evolved, Reporter


class Linear(Protocol):
    """Trains the weight of one target."""

    weight: Float[Tensor, "rows cols"]

    @property
    def trained(self) -> int:
        """How many values are trained."""

    def product(self, inputs: Float[Tensor, "*batch cols"], plain: Product) -> Float[Tensor, "*batch rows"]:
        """What `plain`, the linear's own product, gives; through it gradients come together."""

    def take_gradient(self) -> Float[Tensor, "values"]:
        """The gradient that has come together since the last call; zero where no token came by."""

    def update(self, gradient: Float[Tensor, "values"], rate: float, weight_decay: float) -> None:
        """Step the values, and write what they mean into the weight."""

    def reactivated(self) -> int:
        """Positions that were zero at the start and are not now."""

    def tensors(self) -> dict[str, Tensor]:
        """All that must be known to go on."""

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from saved tensors, whatever has been trained meanwhile."""


class InPlace:
    """A method made of one trainer for each target. No topology evolves."""

    def __init__(self, work: Work, linears: Mapping[str, Linear]) -> None:
        self.config: RepairConfig = work.config
        self._all = linears
        self._release = intercept_products({work.targets[name]: linear.product for name, linear in linears.items()})

    @property
    def trained(self) -> int:
        """How many values are trained."""
        return sum(linear.trained for linear in self._all.values())

    @property
    def grown_zeros(self) -> int:
        """Positions that were zero at the start and are nonzero now."""
        return sum(linear.reactivated() for linear in self._all.values())

    def open(self, _: int) -> None:
        """Nothing is due before a step."""

    def take_gradients(self) -> list[Tensor]:
        """One for each linear."""
        return [linear.take_gradient() for linear in self._all.values()]

    def update(self, gradients: Sequence[Tensor], rate: float, _: float) -> None:
        """One optimizer step in each linear."""
        for linear, gradient in zip(self._all.values(), gradients, strict=True):
            linear.update(gradient, rate, self.config.weight_decay)

    def evolve(self, _: int) -> Evolved | None:
        """Nothing ever moves."""
        return None

    def tensors(self) -> dict[str, Tensor]:
        """What each linear needs to go on."""
        return {f"{name}/{part}": tensor for name, each in self._all.items() for part, tensor in each.tensors().items()}

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Into each linear its own."""
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in self._all}
        for key, tensor in tensors.items():
            name, part = key.split("/")
            parts[name][part] = tensor.to(self._all[name].weight.device)
        for name, linear in self._all.items():
            linear.resume(parts[name])

    def finish(self, _: Reporter) -> None:
        """Give the modules their own products back."""
        self._release()
