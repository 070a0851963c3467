"""What a window learns about one linear: fixed lists of candidates and the gradients they had, summed in float32.

A window is the last few steps before an event. Each backward of it makes the gradient of the whole weight one row
chunk at a time, looks for candidates in it, and forgets it. Nothing here decides: `seft.repair.evolve` does.

[ours] Growth is a lottery: positions are drawn one by one, each with a chance in proportion to its |gradient|. An
exponential draw for each, the same in all micro-batches of a window, makes that a list of the largest |gradient| / draw
(Efraimidis & Spirakis 2006). The largest gradients alone lie in few rows and columns, where steps add up.

[ours] Growth candidates come from every micro-batch: those listed add its gradient to their sums, its best newcomers
join with theirs, and the largest scores stay. A newcomer's missing past counts as zero, which can only make it look
worse. Removal candidates are the least sensitive of the first micro-batch, judged by all: a list of least sums must
not be open to newcomers, whose missing past would look like merit. In an N:M pattern they are the rivals of the zeros
listed for growth instead: all that is nonzero or active in the groups of these, so that members of one group have
sums over the same micro-batches.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seft.config import UNSTRUCTURED, Pattern
from seft.repair.positions import Positions, entries, master_dtype
from seft.repair.processes import summed
from seft.repair.sampled import row_chunks, sampled_product
from seft.seeds import generator

LISTED = 4
"""Candidates listed for each position that the event will choose."""


@dataclass(frozen=True, slots=True)
class Candidates(Positions):
    """Positions with the sum and the sum of squares of their micro-batch gradients, and their draws in the lottery."""

    sums: Float[Tensor, "positions"]
    squares: Float[Tensor, "positions"]
    draws: Float[Tensor, "positions"]

    @classmethod
    def newcomers(
        cls,
        indices: Int[Tensor, "positions"],
        gradients: Float[Tensor, "positions"],
        draws: Float[Tensor, "positions"] | None = None,
    ) -> "Candidates":
        """Candidates seen in one micro-batch; without draws none has better luck than another."""
        order = indices.argsort()
        draws = torch.ones_like(gradients) if draws is None else draws
        return cls(indices[order].int(), gradients[order], gradients[order] ** 2, draws[order])

    @property
    def scores(self) -> Float[Tensor, "positions"]:
        """The largest grow first."""
        return self.sums.abs() / self.draws

    def updated(self, gradients: Float[Tensor, "positions"]) -> "Candidates":
        """The candidates after one more micro-batch."""
        return Candidates(self.indices, self.sums + gradients, self.squares + gradients**2, self.draws)

    def best(self, count: int, scores: Float[Tensor, "positions"]) -> "Candidates":
        """The `count` of them with the largest scores."""
        return self[scores.topk(min(count, len(self))).indices.sort().values]

    def sensitivity(self, weight: Float[Tensor, "rows cols"]) -> Float[Tensor, "positions"]:
        """|W * dL/dW|: how much the loss would change, to first order, if the weight became zero."""
        return (entries(weight, self.indices) * self.sums).abs()


class Window:
    """Candidates of one linear for an event that chooses `count` positions and keeps to `pattern`.

    `seed` decides the draws; without one the largest gradients grow.
    """

    def __init__(
        self,
        weight: Float[Tensor, "rows cols"],
        count: int,
        pattern: Pattern = UNSTRUCTURED,
        seed: int | None = None,
    ) -> None:
        nothing = torch.zeros(0, dtype=master_dtype(weight.dtype), device=weight.device)
        self.count, self._seed = count, seed
        self._pattern = pattern
        self.observed = 0
        self.growth = self.removal = Candidates(nothing.int(), nothing, nothing, nothing)

    def resume(self, growth: Candidates, removal: Candidates, observed: int) -> None:
        """Go on from saved lists."""
        self.growth, self.removal, self.observed = growth, removal, observed

    def observe(
        self,
        left: Float[Tensor, "tokens rows"],
        right: Float[Tensor, "tokens cols"],
        weight: Float[Tensor, "rows cols"],
        active: Int[Tensor, "positions"],
    ) -> None:
        """Learn from one micro-batch: `left` is the gradient of the outputs, `right` the inputs."""
        left, right = left.to(self.growth.sums.dtype), right.to(self.growth.sums.dtype)
        growth = self.growth.updated(summed(sampled_product(left, right, self.growth.indices)))
        removal = self.removal.updated(summed(sampled_product(left, right, self.removal.indices)))
        taken = torch.cat([active, growth.indices]).sort().values
        for rows in row_chunks(weight.shape):
            gradient = summed((left[:, rows].t() @ right).flatten())
            offset = rows.start * weight.shape[1]
            growth = growth.joined(self._promising(gradient, offset, taken))
            growth = growth.best(self.count * LISTED, growth.scores)
            if not self.observed and not self._pattern.grouped:
                removal = removal.joined(self._idle(gradient, offset, weight[rows].flatten()))
                removal = removal.best(self.count * LISTED, -removal.sensitivity(weight))
        if self._pattern.grouped:
            rivals = self._rivals(growth.indices, weight, active)
            new = rivals[~torch.isin(rivals, removal.indices)]
            removal = removal[torch.isin(removal.indices, rivals)]
            removal = removal.joined(Candidates.newcomers(new, summed(sampled_product(left, right, new))))
        self.growth, self.removal, self.observed = growth, removal, self.observed + 1

    def _rivals(
        self, growth: Int[Tensor, "growth"], weight: Float[Tensor, "rows cols"], active: Int[Tensor, "positions"]
    ) -> Int[Tensor, "rivals"]:
        """What is nonzero or active in the groups of the zeros that may grow."""
        groups = torch.unique(growth[entries(weight, growth) == 0] // self._pattern.of)
        members = torch.arange(self._pattern.of, device=groups.device, dtype=groups.dtype)
        places: Tensor = (groups[:, None] * self._pattern.of + members).flatten()
        return places[(entries(weight, places) != 0) | torch.isin(places, active)]

    def _promising(self, gradient: Float[Tensor, "chunk"], offset: int, taken: Int[Tensor, "taken"]) -> Candidates:
        """The entries of a chunk with the best scores that are neither active nor listed."""
        draws = self._draws(gradient, offset)
        scores = gradient.abs() / draws
        bounds = torch.tensor([offset, offset + len(gradient)], device=taken.device, dtype=taken.dtype)
        first, last = torch.searchsorted(taken, bounds).tolist()
        scores[taken[first:last] - offset] = 0
        places = scores.topk(min(self.count * LISTED, len(scores))).indices
        places = places[scores[places] > 0]
        return Candidates.newcomers(places + offset, gradient[places], draws[places])

    def _draws(self, gradient: Float[Tensor, "chunk"], offset: int) -> Float[Tensor, "chunk"]:
        """Those of a chunk's positions, the same whenever they are asked for."""
        if self._seed is None:
            return torch.ones_like(gradient)
        return torch.empty_like(gradient).exponential_(generator=generator(self._seed, str(offset), gradient.device))

    def _idle(self, gradient: Float[Tensor, "chunk"], offset: int, weights: Float[Tensor, "chunk"]) -> Candidates:
        """The nonzeros of a chunk with the least sensitivity."""
        sensitivity = (weights * gradient).abs().masked_fill_(weights == 0, torch.inf)
        places = sensitivity.topk(min(self.count * LISTED, len(sensitivity)), largest=False).indices
        places = places[weights[places] != 0]
        return Candidates.newcomers(places + offset, gradient[places])
