"""The base of methods that keep the trained weights merged in the model: one trainer per target, and one state."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from seft.config import RepairConfig
from seft.models.products import Product, intercept_products
from seft.repair.method import Work
from seft.report import Evolved, Reporter


class LinearTrainer(Protocol):
    """Trains the weight of one target."""

    weight: Float[Tensor, "rows cols"]

    @property
    def trained_values(self) -> int:
        """Number of trained values."""

    def product(self, inputs: Float[Tensor, "*batch cols"], plain: Product) -> Float[Tensor, "*batch rows"]:
        """Return the result of `plain`, the linear's own product. Backward accumulates the values' gradient."""

    def take_gradient(self) -> Float[Tensor, "values"]:
        """Return and reset the gradient accumulated since the last call; zero if there were no tokens."""

    def update(self, gradient: Float[Tensor, "values"], rate: float, weight_decay: float) -> None:
        """Take one optimizer step, and write the new weight."""

    def reactivated_count(self) -> int:
        """Count the positions that were zero at the start and are nonzero now."""

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors needed to continue."""

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from saved tensors, which replace the present ones at any step."""


class InPlaceMethod:
    """A method with one trainer per target and a fixed topology."""

    def __init__(self, work: Work, linears: Mapping[str, LinearTrainer]) -> None:
        self.config: RepairConfig = work.config
        self._trainers = linears
        self._release = intercept_products({work.targets[name]: linear.product for name, linear in linears.items()})

    @property
    def trained_values(self) -> int:
        """Number of trained values."""
        return sum(linear.trained_values for linear in self._trainers.values())

    @property
    def grown_zeros(self) -> int:
        """Number of positions that were zero at the start and are nonzero now."""
        return sum(linear.reactivated_count() for linear in self._trainers.values())

    def before_step(self, _: int) -> None:
        """Do nothing."""

    def take_gradients(self) -> list[Tensor]:
        """Return and reset the accumulated gradient of each linear."""
        return [linear.take_gradient() for linear in self._trainers.values()]

    def update(self, gradients: Sequence[Tensor], rate: float, _: float) -> None:
        """Take one optimizer step in each linear."""
        for linear, gradient in zip(self._trainers.values(), gradients, strict=True):
            linear.update(gradient, rate, self.config.weight_decay)

    def evolve(self, _: int) -> Evolved | None:
        """Return None: the topology is fixed."""
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that each linear needs to continue."""
        return {
            f"{name}/{part}": tensor for name, each in self._trainers.items() for part, tensor in each.tensors().items()
        }

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue every linear from its saved tensors."""
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in self._trainers}
        for key, tensor in tensors.items():
            name, part = key.split("/")
            parts[name][part] = tensor.to(self._trainers[name].weight.device)
        for name, linear in self._trainers.items():
            linear.resume(parts[name])

    def finish(self, _: Reporter) -> None:
        """Restore the modules' own products."""
        self._release()
