"""A linear whose active weights alone have a gradient; the merged weight stays in place and is never copied.

Forward is the linear itself. Backward makes the gradient of the input and, for the active positions only, a sampled
dense-dense product: `sum over tokens of dy[token, row] * x[token, col]`. No gradient of the whole weight exists; while
a window is open its candidates are found from row chunks (`seft.repair.window`).
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from seft.repair import evolve, optimizer
from seft.repair.active import Active, spread
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

    The weight differs from the one it started with at `active` and `removed` alone. It takes over `linear.forward`
    until `release`; name, type and parameters of the module stay as they are.
    """

    def __init__(self, linear: nn.Linear, density: float, generator: torch.Generator) -> None:
        self.linear = linear
        self.weight = linear.weight.detach()
        self.budget = int(self.weight.count_nonzero())
        count = min(max(1, round(density * self.weight.numel())), self.budget)
        self.adopt(Active.start(self.weight, spread(self.weight, count, generator)))
        self.removed = self.active.indices[:0]
        self.window: Window | None = None
        linear.forward = self._forward  # type: ignore[assignment,method-assign]

    def adopt(self, active: Active) -> None:
        """Train another active set from now on."""
        self.active = active
        self._leaf = active.values.detach().requires_grad_()

    def resume(self, active: Active, removed: Int[Tensor, "removed"]) -> None:
        """Go on from a saved state; the weight is as it was at the start."""
        self.adopt(active)
        self.removed = removed
        self.weight.view(-1)[removed] = 0
        active.write(self.weight)

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
        choice = evolve.choose(self.weight, kept, dropped, window.growth, window.removal, budget=self.budget)
        grown = Active.start(self.weight, choice.grown.indices)
        optimizer.seed(grown, choice.grown, window.observed, pieces)
        self._remove(choice.removed, kept)
        self.adopt(kept[~torch.isin(kept.indices, choice.removed)].joined(grown))
        return Change(len(dropped), len(grown), int((grown.bases == 0).sum()), len(choice.removed))

    def reactivated(self) -> int:
        """Positions that were zero at the start and are not now."""
        bases, present = self.active.bases, self.weight.view(-1)[self.active.indices]
        return int(((bases == 0) & (present != 0) & ~torch.isin(self.active.indices, self.removed)).sum())

    def release(self) -> None:
        """Leave a plain linear with the merged weight."""
        vars(self.linear).pop("forward", None)

    def _remove(self, removed: Int[Tensor, "removed"], kept: Active) -> None:
        self.weight.view(-1)[removed] = 0
        born_zero = kept.indices[kept.bases == 0]
        self.removed = torch.unique(torch.cat([self.removed, removed[~torch.isin(removed, born_zero)]]))

    def _forward(self, inputs: Float[Tensor, "*batch cols"]) -> Float[Tensor, "*batch rows"]:
        outputs: Tensor = _Product.apply(inputs, self._leaf, self)  # type: ignore[no-untyped-call]
        return outputs


class _Product(torch.autograd.Function):
    """`y = x W^T + b`, whose backward knows W as a constant but for the active values."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Float[Tensor, "*batch cols"], _leaf: Float[Tensor, "positions"], owner: RepairedLinear
    ) -> Float[Tensor, "*batch rows"]:
        ctx.owner = owner
        ctx.save_for_backward(inputs)
        return F.linear(inputs, owner.weight, owner.linear.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "*batch rows"]) -> tuple[Tensor | None, Tensor, None]:
        owner: RepairedLinear = ctx.owner
        (inputs,) = ctx.saved_tensors
        onward = gradient @ owner.weight if ctx.needs_input_grad[0] else None
        left, right = gradient.flatten(0, -2), inputs.flatten(0, -2)
        if owner.window is not None:
            owner.window.observe(left, right, owner.weight, owner.active.indices)
        return onward, sampled_product(left, right, owner.active.indices), None
