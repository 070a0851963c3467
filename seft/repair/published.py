"""The gradient window with the rules that the paper of SEFT describes (Xiao et al., arXiv 2505.24037).

- The positions with the largest sum of gradients grow. No random numbers are drawn.
- The positions with the smallest |W * sum of gradients| become zero.
- In an N:M pattern only nonzeros grow, so no zero moves.
- No typical gradient is measured, so all steps of the optimizer have full size.

Which positions grow and which become zero depends on the sums of gradients of all positions. A sum may become small or
large by chance, and this is known only at the end of the window. So a list of candidates, which is chosen earlier, is
not sufficient. This window stores the dense sum of gradients, which the other variant avoids. The squares of gradients
are not stored. Grown positions get the moments that a constant gradient would give.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seft.config import UNSTRUCTURED, Pattern, Variant
from seft.models.targets import Target
from seft.repair.positions import entries
from seft.repair.selection import largest
from seft.repair.window import CANDIDATES_PER_POSITION, Candidates, GradientSums, Window


class PublishedWindow(Window):
    """The gradient window of one linear with the rules of the paper. `sums` has each weight's sum of gradients."""

    def __init__(self, target: Target, count: int, seed: int, pattern: Pattern = UNSTRUCTURED) -> None:
        super().__init__(target, count, seed, pattern)
        self.sums = self.outputs.new_zeros(target.shape)

    def tensors(self) -> dict[str, Tensor]:
        """Return all statistics as tensors by name."""
        return {**super().tensors(), "sums": self.sums}

    def resume(self, tensors: Mapping[str, Tensor], observed: int) -> None:
        """Replace the statistics by saved ones. `observed` is the number of micro-batches in them."""
        super().resume(tensors, observed)
        self.sums = tensors["sums"]

    def clipped(self, active: Int[Tensor, "positions"], /) -> tuple[Candidates, GradientSums]:
        """Return the positions with the largest sums of clipped gradients, except `active`, and an empty sample."""
        self.growth = self._largest(active)
        return super().clipped(active)

    def _largest(self, active: Int[Tensor, "positions"]) -> Candidates:
        scores = self.sums.flatten().abs()
        scores[active] = 0
        zero = self._weight.flatten() == 0
        kinds = [~zero] if self._pattern.grouped else [~zero, zero]  # An event may limit the number of zeros.
        count = self.count * CANDIDATES_PER_POSITION
        indices = torch.unique(torch.cat([_largest_positive(scores * kind, count) for kind in kinds])).int()
        sums = entries(self.sums, indices)
        return Candidates(indices, sums, sums**2 / max(1, self.observed), torch.ones_like(sums))

    def _list(self, gradient: Float[Tensor, "chunk"], rows: slice, _: Int[Tensor, "taken"]) -> None:
        self.sums[rows] += gradient.view(-1, self.sums.shape[1])

    def _sensitivity(self, places: Int[Tensor, "positions"]) -> Float[Tensor, "positions"]:
        """Return the change of the loss, to first order, if a weight became zero, for each of `places`."""
        return (entries(self._weight, places) * entries(self.sums, places)).abs()

    def _sensitivities(self, rows: slice) -> Float[Tensor, "chunk cols"]:
        return (self._weight[rows] * self.sums[rows]).abs()

    def _sample(self) -> Int[Tensor, "sampled"]:
        """Return no positions, because no typical gradient is needed."""
        return torch.zeros(0, dtype=torch.int32, device=self._weight.device)


def _largest_positive(scores: Float[Tensor, "entries"], count: int) -> Int[Tensor, "chosen"]:
    """Return the places of the `count` largest positive scores, or of all positive scores if there are fewer."""
    places = largest(scores, count)
    return places[scores[places] > 0]


WINDOWS: dict[Variant, type[Window]] = {Variant.IMPROVED: Window, Variant.PUBLISHED: PublishedWindow}
"""The gradient window of each variant of SEFT."""
