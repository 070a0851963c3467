"""What a window learns about one linear: a fixed list of candidates for growth, with the gradients they had, summed in
float32, and how large inputs and output gradients are, by which the others are judged.

A window is the last few steps before an event. Each backward of it makes the gradient of the whole weight one row
chunk at a time, looks for candidates in it, and forgets it. Nothing here decides: `seft.repair.evolve` does.

[ours] Growth is a lottery: positions are drawn one by one, each with a chance in proportion to its |gradient|. An
exponential draw for each, the same in all micro-batches of a window, makes that a list of the largest |gradient| / draw
(Efraimidis & Spirakis 2006). The largest gradients alone lie in few rows and columns, where steps add up.

[ours] Candidates come from every micro-batch: those listed add its gradient to their sums, its best newcomers join with
theirs, and the largest scores stay. A newcomer's missing past counts as zero, which can only make it look worse.

[ours] How large gradients typically are, a sample tells: nonzeros drawn evenly before any gradient was seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seft.config import UNSTRUCTURED, Pattern
from seft.dtypes import master_dtype
from seft.repair.positions import Positions, entries, fields_of, named
from seft.repair.processes import summed
from seft.repair.sampled import row_chunks, sampled_product
from seft.seeds import generator

W = TypeVar("W", bound="Watched")
"""A kind of list, as in `seft.repair.positions`."""

LISTED = 4
"""Candidates for growth, and for removal, for each position that the event will choose."""

SAMPLE = 4096
"""Most nonzeros whose gradients tell what is typical, however few positions the event will choose."""


@dataclass(frozen=True, slots=True)
class Watched(Positions):
    """Positions with the sum and the sum of squares of their micro-batch gradients."""

    sums: Float[Tensor, "positions"]
    squares: Float[Tensor, "positions"]

    def updated(self: W, gradients: Float[Tensor, "positions"]) -> W:
        """The same after one more micro-batch."""
        return replace(self, sums=self.sums + gradients, squares=self.squares + gradients**2)

    def scaled(self: W, scale: float) -> W:
        """The same had every gradient been so many times what it was."""
        return replace(self, sums=self.sums * scale, squares=self.squares * scale**2)


@dataclass(frozen=True, slots=True)
class Candidates(Watched):
    """Positions that may grow, each with its draw in the lottery."""

    draws: Float[Tensor, "positions"]

    @classmethod
    def newcomers(
        cls,
        indices: Int[Tensor, "positions"],
        gradients: Float[Tensor, "positions"],
        draws: Float[Tensor, "positions"],
    ) -> "Candidates":
        """Candidates seen in one micro-batch."""
        order = indices.argsort()
        return cls(indices[order].int(), gradients[order], gradients[order] ** 2, draws[order])

    @property
    def scores(self) -> Float[Tensor, "positions"]:
        """The largest grow first."""
        return self.sums.abs() / self.draws

    def best(self, count: int) -> "Candidates":
        """The `count` of them with the largest scores."""
        return self[self.scores.topk(min(count, len(self))).indices.sort().values]


class Window:
    """What is known of one linear for an event that chooses `count` positions and keeps to `pattern`.

    `outputs` and `inputs` are sums of squares over tokens: of each output's gradient, and of each input. `scales` are
    what clipping has multiplied the steps' gradients by. `seed` decides the draws and the sample.
    """

    def __init__(
        self, weight: Float[Tensor, "rows cols"], count: int, seed: int, pattern: Pattern = UNSTRUCTURED
    ) -> None:
        nothing = torch.zeros(0, dtype=master_dtype(weight.dtype), device=weight.device)
        self.count, self._seed = count, seed
        self._pattern = pattern
        self.observed = 0
        self.growth = Candidates(nothing.int(), nothing, nothing, nothing)
        sampled = _sample(weight, generator(seed, "sample"))
        self.sample = Watched(sampled, nothing.new_zeros(len(sampled)), nothing.new_zeros(len(sampled)))
        self.outputs, self.inputs = (nothing.new_zeros(size) for size in weight.shape)
        self.scales: list[float] = []

    def tensors(self) -> dict[str, Tensor]:
        """All that was learnt."""
        lists = named({"growth": self.growth, "sample": self.sample})
        scales = torch.tensor(self.scales, dtype=torch.float64)
        return {**lists, "outputs": self.outputs, "inputs": self.inputs, "scales": scales}

    def resume(self, tensors: Mapping[str, Tensor], observed: int) -> None:
        """Go on from what was learnt before."""
        self.growth, self.sample = Candidates(**fields_of(tensors, "growth")), Watched(**fields_of(tensors, "sample"))
        self.outputs, self.inputs, self.scales = tensors["outputs"], tensors["inputs"], tensors["scales"].tolist()
        self.observed = observed

    def clipped(self) -> tuple[Candidates, Watched]:
        """The candidates and the sample, had they seen gradients as clipping left them, which moments are made of."""
        scale = sum(self.scales) / len(self.scales) if self.scales else 1.0
        return self.growth.scaled(scale), self.sample.scaled(scale)

    def observe(
        self,
        left: Float[Tensor, "tokens rows"],
        right: Float[Tensor, "tokens cols"],
        active: Int[Tensor, "positions"],
    ) -> None:
        """Learn from one micro-batch: `left` is the gradient of the outputs, `right` the inputs."""
        left, right = left.to(self.outputs.dtype), right.to(self.inputs.dtype)
        self.outputs = self.outputs + summed(left.square().sum(0))
        self.inputs = self.inputs + summed(right.square().sum(0))
        self.sample = self.sample.updated(summed(sampled_product(left, right, self.sample.indices)))
        growth = self.growth.updated(summed(sampled_product(left, right, self.growth.indices)))
        taken = torch.cat([active, growth.indices]).sort().values
        for rows in row_chunks((left.shape[1], right.shape[1])):
            gradient = summed((left[:, rows].t() @ right).flatten())
            growth = growth.joined(self._promising(gradient, rows.start * right.shape[1], taken))
            growth = growth.best(self.count * LISTED)
        self.growth, self.observed = growth, self.observed + 1

    def removal(self, weight: Float[Tensor, "rows cols"], kept: Int[Tensor, "positions"]) -> Int[Tensor, "removal"]:
        """What may become zero, the least sensitive first. In an N:M pattern that is all that is nonzero or `kept`
        active in the groups of the zeros listed for growth; else as many nonzeros as may be listed for growth.
        """
        places = self._rivals(weight, kept) if self._pattern.grouped else self._idle(weight)
        return places[self._sensitivity(weight, places).argsort(stable=True)]

    def _sensitivity(
        self, weight: Float[Tensor, "rows cols"], places: Int[Tensor, "positions"]
    ) -> Float[Tensor, "positions"]:
        """Root of how much the loss would grow if a weight became zero, but for a factor that all share.

        [ours] That is W^2 times the curvature there (LeCun et al. 1990, Optimal Brain Damage), here the product of
        the mean squares of the output's gradient and of the input (Martens & Grosse 2015, section 3). The paper's
        |W * gradient| is small by chance in more places than by right.
        """
        rows, cols = places // weight.shape[1], places % weight.shape[1]
        return entries(weight, places).abs() * self.outputs.sqrt()[rows] * self.inputs.sqrt()[cols]

    def _idle(self, weight: Float[Tensor, "rows cols"]) -> Int[Tensor, "idle"]:
        """The least sensitive nonzeros, found chunk by chunk."""
        least = torch.zeros(0, dtype=torch.int64, device=weight.device)
        for rows in row_chunks(weight.shape):
            nonzeros = weight[rows].flatten().nonzero().squeeze(1) + rows.start * weight.shape[1]
            least = torch.cat([least, nonzeros])
            count = min(self.count * LISTED, len(least))
            least = least[self._sensitivity(weight, least).topk(count, largest=False).indices]
        return least.sort().values

    def _rivals(self, weight: Float[Tensor, "rows cols"], kept: Int[Tensor, "positions"]) -> Int[Tensor, "rivals"]:
        """What is nonzero or active in the groups of the zeros that may grow."""
        growth = self.growth.indices
        groups = torch.unique(growth[entries(weight, growth) == 0] // self._pattern.of)
        members = torch.arange(self._pattern.of, device=groups.device, dtype=groups.dtype)
        places: Tensor = (groups[:, None] * self._pattern.of + members).flatten()
        return places[(entries(weight, places) != 0) | torch.isin(places, kept)]

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
        return torch.empty_like(gradient).exponential_(generator=generator(self._seed, str(offset), gradient.device))


def _sample(weight: Float[Tensor, "rows cols"], generator: torch.Generator) -> Int[Tensor, "sampled"]:
    """Some nonzeros, sorted, any as likely as any other: of places drawn evenly those that are no zeros."""
    places = torch.randint(weight.numel(), (4 * SAMPLE,), generator=generator).to(weight.device)
    sampled: Tensor = torch.unique(places[entries(weight, places) != 0][:SAMPLE])
    return sampled.int()
