"""A linear whose active weights alone have a gradient; the merged weight stays in place and is never copied.

Forward is the linear's own product. Backward makes the gradient of the input and, for the active positions only, a
sampled dense-dense product: `sum over tokens of dy[token, row] * x[token, col]`. No gradient of the whole weight
exists; while a window is open its candidates are found from row chunks (`seft.repair.window`).
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from seft.config import UNSTRUCTURED, Pattern
from seft.errors import ConfigError
from seft.products import Product
from seft.prune.mask import overfull
from seft.repair import evolve, optimizer
from seft.repair.active import Active, spread
from seft.repair.positions import entries, put
from seft.repair.sampled import sampled_product
from seft.repair.window import Window


class Change(NamedTuple):
    """What an event did to one linear; the words are those of `seft.report.Evolved`."""

    dropped: int
    grown: int
    reactivated: int
    pruned: int


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
        if weight.shape[1] % pattern.of or overfull(weight, pattern):
            rule = "must be one that the weights are in"
            raise ConfigError("pattern", rule, str(pattern), "Give the one that the model was pruned in.")
        self.weight, self.pattern = weight, pattern
        self.budget = int(self.weight.count_nonzero())
        count = min(max(1, round(density * self.weight.numel())), self.budget)
        self.adopt(Active.start(self.weight, spread(self.weight, count, generator)))
        self.removed = self.active.indices[:0]
        self.window: Window | None = None

    def adopt(self, active: Active) -> None:
        """Train another active set from now on."""
        self.active = active
        self._leaf = active.values.detach().requires_grad_()

    def resume(self, active: Active, removed: Int[Tensor, "removed"]) -> None:
        """Go on from a saved state; the weight is as it was at the start."""
        self.adopt(active)
        self.removed = removed
        put(self.weight, removed, self.weight.new_zeros(len(removed)))
        active.write(self.weight)

    def open_window(self, count: int) -> Window:
        """From now on look for candidates for an event that chooses `count` positions."""
        self.window = Window(self.weight, count, self.pattern)
        return self.window

    def take_gradient(self) -> Float[Tensor, "positions"]:
        """The gradient that has come together since the last call; zero where no token came by."""
        gradient, self._leaf.grad = self._leaf.grad, None
        return torch.zeros_like(self.active.values) if gradient is None else gradient

    def evolve(self, count: int, pieces: int) -> Change:
        """Close the window with its event, replacing `count` positions; `pieces` micro-batches made a step."""
        window, self.window = self.window, None
        if window is None or not window.observed:
            return Change(0, 0, 0, 0)
        kept, dropped = evolve.drop(self.active, min(count, len(window.growth)))
        dropped.restore(self.weight)
        choice = evolve.choose(
            self.weight, kept, dropped, window.growth, window.removal, budget=self.budget, pattern=self.pattern
        )
        grown = Active.start(self.weight, choice.grown.indices)
        optimizer.seed(grown, choice.grown, window.observed, pieces)
        spared = dropped[torch.isin(dropped.indices, choice.spared)]
        spared.write(self.weight)
        self._remove(choice.removed, kept)
        self.adopt(kept[~torch.isin(kept.indices, choice.removed)].joined(spared).joined(grown))
        return Change(len(dropped) - len(spared), len(grown), int((grown.bases == 0).sum()), len(choice.removed))

    def reactivated(self) -> int:
        """Positions that were zero at the start and are not now."""
        bases, present = self.active.bases, entries(self.weight, self.active.indices)
        return int(((bases == 0) & (present != 0) & ~torch.isin(self.active.indices, self.removed)).sum())

    def product(self, inputs: Float[Tensor, "*batch cols"], plain: Product) -> Float[Tensor, "*batch rows"]:
        """What `plain`, the linear's own product, gives; differentiable in the inputs and the active values alone."""
        outputs: Tensor = _Product.apply(inputs, self._leaf, self, plain)  # type: ignore[no-untyped-call]
        return outputs

    def _remove(self, removed: Int[Tensor, "removed"], kept: Active) -> None:
        put(self.weight, removed, self.weight.new_zeros(len(removed)))
        born_zero = kept.indices[kept.bases == 0]
        self.removed = torch.unique(torch.cat([self.removed, removed[~torch.isin(removed, born_zero)]]))


class _Product(torch.autograd.Function):
    """`y = x W^T + b`, whose backward knows W as a constant but for the active values, and b as a constant."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Float[Tensor, "*batch cols"],
        _leaf: Float[Tensor, "positions"],
        owner: RepairedLinear,
        plain: Product,
    ) -> Float[Tensor, "*batch rows"]:
        ctx.owner = owner
        ctx.save_for_backward(inputs)
        return plain(inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "*batch rows"]) -> tuple[Tensor | None, Tensor, None, None]:
        owner: RepairedLinear = ctx.owner
        (inputs,) = ctx.saved_tensors
        onward = gradient @ owner.weight if ctx.needs_input_grad[0] else None
        left, right = gradient.flatten(0, -2), inputs.flatten(0, -2)
        if owner.window is not None:
            owner.window.observe(left, right, owner.weight, owner.active.indices)
        return onward, sampled_product(left, right, owner.active.indices), None, None
