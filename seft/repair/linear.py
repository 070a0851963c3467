"""A linear whose active weights alone have a gradient; the merged weight stays in place and is never copied.

Backward makes, for the active positions only, a sampled dense-dense product: `sum over tokens of dy[token, row] *
x[token, col]`. No gradient of the whole weight exists; while a window is open its candidates are found from row chunks
(`seft.repair.window`).
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seft.config import UNSTRUCTURED, Pattern
from seft.errors import ConfigError
from seft.models.products import Product
from seft.prune.mask import overfull_groups
from seft.repair import evolve, optimizer
from seft.repair.active import Active, spread
from seft.repair.positions import Former, entries, fields_of, named, put
from seft.repair.product import trained_product
from seft.repair.sampled import sampled_product
from seft.repair.window import Window
from seft.report import Change


class RepairedLinear:
    """A linear under repair: its active set, its budget, and the former nonzeros that adaptation has made zero.

    `weight` is changed in place; it differs from the one at the start at `active` and `removed` alone. Whoever makes
    this lets `product` stand in for the linear's own. ConfigError where the weight is not in the pattern.
    """

    def __init__(
        self,
        weight: Float[Tensor, "rows cols"],
        density: float,
        generator: torch.Generator,
        pattern: Pattern = UNSTRUCTURED,
    ) -> None:
        if weight.shape[1] % pattern.of or overfull_groups(weight, pattern):
            rule = "must be one that the weights are in"
            raise ConfigError("pattern", rule, str(pattern), "Give the one that the model was pruned in.")
        self.weight, self.pattern = weight, pattern
        self.budget = int(self.weight.count_nonzero())
        count = min(max(1, round(density * self.weight.numel())), self.budget)
        self.adopt(Active.start(self.weight, spread(self.weight, count, generator)))
        self.removed = Former(self.active.indices[:0], self.active.bases[:0])
        self.window: Window | None = None
        self._seed = int(torch.randint(1 << 62, (), generator=generator))
        self._typical = self.active.values.new_zeros(())

    def adopt(self, active: Active) -> None:
        """Train another active set from now on."""
        self.active = active
        self._leaf = active.values.detach().requires_grad_()

    @property
    def trained(self) -> int:
        """How many positions are active."""
        return len(self.active)

    def tensors(self) -> dict[str, Tensor]:
        """The active set, the removed positions, the typical gradient, and the open window with its counts."""
        parts = named({"active": self.active, "removed": self.removed})
        if (window := self.window) is not None:
            counts = torch.tensor([window.count, self._event, window.observed])
            parts |= {"window": counts, **window.tensors()}
        return {**parts, "typical": self._typical}

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a saved state instead of the present one, which is undone first."""
        self.active.restore(self.weight)
        self.removed.restore(self.weight)  # of what is active again, too: its base was the zero it had become
        self.adopt(Active(**fields_of(tensors, "active")))
        self.removed = Former(**fields_of(tensors, "removed"))
        put(self.weight, self.removed.indices, self.weight.new_zeros(len(self.removed)))
        self.active.write(self.weight)
        self.window, self._typical = None, tensors["typical"]
        if "window" in tensors:
            count, event, observed = tensors["window"].tolist()
            self.open_window(count, event).resume(tensors, observed)

    def open_window(self, count: int, event: int) -> Window:
        """From now on look for candidates for an event that chooses `count` positions; `event` numbers it."""
        self.window, self._event = Window(self.weight, count, self._seed + event, self.pattern), event
        return self.window

    def take_gradient(self) -> Float[Tensor, "positions"]:
        """The gradient that has come together since the last call; zero where no token came by."""
        gradient, self._leaf.grad = self._leaf.grad, None
        return torch.zeros_like(self.active.values) if gradient is None else gradient

    def update(self, gradient: Float[Tensor, "positions"], rate: float, weight_decay: float) -> None:
        """Step the values, and write them into the weight."""
        known = self._typical.where(self._typical != 0, torch.inf)
        optimizer.step(self.active, gradient, rate, weight_decay, known)
        self.active.write(self.weight)

    def evolve(self, count: int, steps: int, pieces: int) -> Change:
        """Close the window with its event, replacing `count` positions; it saw `steps` of `pieces` micro-batches."""
        window, self.window = self.window, None
        if window is None or not window.observed:
            return Change(0, 0, 0, 0)
        growth, sample = window.clipped()
        # An expert may have had few tokens until now; all others have had their largest gradients at the start.
        self._typical = self._typical.maximum(optimizer.typical(sample, steps, pieces))
        kept, dropped = evolve.drop(self.active, min(count, len(growth)))
        dropped.restore(self.weight)
        removal = window.removal(self.weight, kept.indices)
        choice = evolve.choose(self.weight, kept, dropped, growth, removal, budget=self.budget, pattern=self.pattern)
        grown = Active.start(self.weight, choice.grown.indices)
        optimizer.seed(grown, choice.grown, steps, pieces)
        spared = dropped[torch.isin(dropped.indices, choice.spared)]
        spared.write(self.weight)
        self._remove(choice.removed, kept)
        self.adopt(kept[~torch.isin(kept.indices, choice.removed)].joined(spared).joined(grown))
        return Change(len(dropped) - len(spared), len(grown), int((grown.bases == 0).sum()), len(choice.removed))

    def reactivated(self) -> int:
        """Positions that were zero at the start and are not now."""
        bases, present = self.active.bases, entries(self.weight, self.active.indices)
        return int(((bases == 0) & (present != 0) & ~torch.isin(self.active.indices, self.removed.indices)).sum())

    def product(self, inputs: Float[Tensor, "*batch cols"], plain: Product) -> Float[Tensor, "*batch rows"]:
        """What `plain`, the linear's own product, gives; differentiable in the inputs and the active values alone."""
        return trained_product(inputs, self._leaf, self, plain)

    def gradient(
        self, left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens cols"]
    ) -> Float[Tensor, "positions"]:
        """Of the active values; an open window looks on."""
        if self.window is not None:
            self.window.observe(left, right, self.active.indices)
        return sampled_product(left, right, self.active.indices)

    def _remove(self, removed: Int[Tensor, "removed"], kept: Active) -> None:
        kept[torch.isin(kept.indices, removed)].restore(self.weight)
        removed = removed.sort().values
        former = Former(removed.int(), entries(self.weight, removed))
        put(self.weight, removed, self.weight.new_zeros(len(removed)))
        # What was a zero is one again, or is among the removed already.
        self.removed = self.removed.joined(former[former.bases != 0])
