"""A linear in which only the active weights have a gradient. The merged weight stays in place and is never copied.

The backward pass computes a sampled dense-dense product for the active positions: `sum over tokens of dy[token, row] *
x[token, col]`. There is no gradient of the whole weight. An open window finds its candidates from chunks of rows
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
from seft.repair.active import Active, sample_nonzeros
from seft.repair.positions import BasePositions, entries, fields_of, named_fields, put
from seft.repair.product import trained_product
from seft.repair.sampled import sampled_product
from seft.repair.window import Window
from seft.report import Change


class RepairedLinear:
    """A linear under repair: its active set, its budget, and `removed`, the former nonzeros that events made zero.

    `weight` is changed in place; it differs from the initial one only at `active` and `removed`. The caller replaces
    the linear's own product by `product`. Raises ConfigError if the weight does not follow the pattern.
    """

    def __init__(
        self,
        weight: Float[Tensor, "rows cols"],
        density: float,
        generator: torch.Generator,
        pattern: Pattern = UNSTRUCTURED,
    ) -> None:
        if weight.shape[1] % pattern.of or overfull_groups(weight, pattern):
            rule = "must be one that the weights follow"
            raise ConfigError("pattern", rule, str(pattern), "Give the pattern that the model was pruned to.")
        self.weight, self.pattern = weight, pattern
        self.budget = int(self.weight.count_nonzero())
        count = min(max(1, round(density * self.weight.numel())), self.budget)
        self.adopt(Active.start(self.weight, sample_nonzeros(self.weight, count, generator)))
        self.removed = BasePositions(self.active.indices[:0], self.active.bases[:0])
        self.window: Window | None = None
        self._seed = int(torch.randint(1 << 62, (), generator=generator))
        self._typical = self.active.values.new_zeros(())

    def adopt(self, active: Active) -> None:
        """Replace the active set."""
        self.active = active
        self._leaf = active.values.detach().requires_grad_()

    @property
    def trained_values(self) -> int:
        """Number of active positions."""
        return len(self.active)

    def tensors(self) -> dict[str, Tensor]:
        """Return the active set, the removed positions, the typical gradient, and the open window with its counts."""
        parts = named_fields({"active": self.active, "removed": self.removed})
        if (window := self.window) is not None:
            counts = torch.tensor([window.count, self._event, window.observed])
            parts |= {"window": counts, **window.tensors()}
        return {**parts, "typical": self._typical}

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from a saved state. The present state is undone first."""
        self.active.restore(self.weight)
        self.removed.restore(self.weight)  # Also for active positions: a removed one that grew again has base 0.
        self.adopt(Active(**fields_of(tensors, "active")))
        self.removed = BasePositions(**fields_of(tensors, "removed"))
        put(self.weight, self.removed.indices, self.weight.new_zeros(len(self.removed)))
        self.active.write(self.weight)
        self.window, self._typical = None, tensors["typical"]
        if "window" in tensors:
            count, event, observed = tensors["window"].tolist()
            self.open_window(count, event).resume(tensors, observed)

    def open_window(self, count: int, event: int) -> Window:
        """Start to look for candidates for an event that chooses `count` positions. `event` is the event's step."""
        self.window, self._event = Window(self.weight, count, self._seed + event, self.pattern), event
        return self.window

    def take_gradient(self) -> Float[Tensor, "positions"]:
        """Return and reset the gradient accumulated since the last call; zero if there were no tokens."""
        gradient, self._leaf.grad = self._leaf.grad, None
        return torch.zeros_like(self.active.values) if gradient is None else gradient

    def update(self, gradient: Float[Tensor, "positions"], rate: float, weight_decay: float) -> None:
        """Take one optimizer step, and write the values into the weight."""
        typical = self._typical.where(self._typical != 0, torch.inf)
        optimizer.step(self.active, gradient, rate, weight_decay, typical)
        self.active.write(self.weight)

    def evolve(self, count: int, steps: int, pieces: int) -> Change:
        """Close the window with its event, which replaces `count` positions.

        The window observed `steps` steps of `pieces` micro-batches each. Does nothing if it observed no gradient.
        """
        window, self.window = self.window, None
        if window is None or not window.observed:
            return Change(0, 0, 0, 0)
        growth, sample = window.clipped()
        # The maximum, because an expert may have had few tokens until now. All other linears have their largest
        # gradients at the start.
        self._typical = self._typical.maximum(optimizer.typical_gradient(sample, steps, pieces))
        kept, dropped = evolve.drop(self.active, min(count, len(growth)))
        dropped.restore(self.weight)
        removal = window.removal(self.weight, kept.indices)
        choice = evolve.choose(self.weight, kept, dropped, growth, removal, budget=self.budget, pattern=self.pattern)
        grown = Active.start(self.weight, choice.grown.indices)
        optimizer.seed_moments(grown, choice.grown, steps, pieces)
        spared = dropped[torch.isin(dropped.indices, choice.spared)]
        spared.write(self.weight)
        self._remove(choice.removed, kept)
        self.adopt(kept[~torch.isin(kept.indices, choice.removed)].joined(spared).joined(grown))
        return Change(len(dropped) - len(spared), len(grown), int((grown.bases == 0).sum()), len(choice.removed))

    def reactivated_count(self) -> int:
        """Count the positions that were zero at the start and are nonzero now."""
        bases, present = self.active.bases, entries(self.weight, self.active.indices)
        return int(((bases == 0) & (present != 0) & ~torch.isin(self.active.indices, self.removed.indices)).sum())

    def product(self, inputs: Float[Tensor, "*batch cols"], plain: Product) -> Float[Tensor, "*batch rows"]:
        """Return the result of `plain`, the linear's own product; differentiable in inputs and active values."""
        return trained_product(inputs, self._leaf, self, plain)

    def gradient(
        self, left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens cols"]
    ) -> Float[Tensor, "positions"]:
        """Return the gradient of the active values, and show the micro-batch to an open window.

        `left` is the gradient of the outputs, `right` the inputs.
        """
        if self.window is not None:
            self.window.observe(left, right, self.active.indices)
        return sampled_product(left, right, self.active.indices)

    def _remove(self, removed: Int[Tensor, "removed"], kept: Active) -> None:
        kept[torch.isin(kept.indices, removed)].restore(self.weight)
        removed = removed.sort().values
        former = BasePositions(removed.int(), entries(self.weight, removed))
        put(self.weight, removed, self.weight.new_zeros(len(removed)))
        # Positions with base 0 were zero at the start, or are in `removed` already.
        self.removed = self.removed.joined(former[former.bases != 0])
