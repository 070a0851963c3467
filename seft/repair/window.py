"""The gradient window of one linear: statistics of the last few steps before a topology event, which decide it.

A gradient window has a list of candidates for growth, of fixed size, with their gradients summed in float32. It also
has the mean squares of inputs and output gradients, which give the sensitivity of the other weights. Each backward pass
computes the gradient of the weight matrix for one chunk of rows at a time, finds candidates in it, and frees it. The
decisions of an event are in `seft.repair.topology`.

[ours] Growth is random: positions are drawn without replacement, in proportion to |gradient|. Each position has one
exponential random number, the same in all micro-batches of a gradient window. The positions with the largest |gradient|
/ number are then such a draw (Efraimidis & Spirakis 2006). The positions with the largest gradients alone are in few
rows and columns, where their steps would add up.

[ours] Candidates come from every micro-batch. Its gradients are added to the sums of the listed candidates, its best
new candidates are added to the list, and those with the largest scores stay. The earlier gradients of a new candidate
count as zero, which can only lower its score.

[ours] The typical size of gradients comes from a sample of nonzeros, drawn evenly before any gradient was computed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seft.config import UNSTRUCTURED, Pattern
from seft.devices import has_bfloat16
from seft.dtypes import master_dtype
from seft.models.targets import Target
from seft.repair.positions import Positions, entries, fields_of, named_fields
from seft.repair.processes import sum_over_processes
from seft.repair.sampled import row_chunks, sampled_product
from seft.repair.selection import largest
from seft.seeds import generator

CANDIDATES_PER_POSITION = 4
"""Number of candidates for growth, and for removal, per position that the event chooses."""

_has_bfloat16 = cache(has_bfloat16)

SAMPLE_SIZE = 4096
"""Largest number of nonzeros in the sample from which the typical gradient is computed."""


@dataclass(frozen=True, slots=True)
class GradientSums(Positions):
    """Positions, each with the sum and the sum of squares of its gradients over micro-batches."""

    sums: Float[Tensor, "positions"]
    squares: Float[Tensor, "positions"]

    @classmethod
    def empty(cls, like: Float[Tensor, "*shape"]) -> "GradientSums":
        """Return a list without positions, with the dtype and device of `like`."""
        none = like.new_zeros(0)
        return GradientSums(none.int(), none, none)

    def updated(self, gradients: Float[Tensor, "positions"]) -> Self:
        """Return the sums with the gradients of one more micro-batch added."""
        return replace(self, sums=self.sums + gradients, squares=self.squares + gradients**2)

    def scaled(self, scale: float) -> Self:
        """Return the sums that would result if every gradient were multiplied by `scale`."""
        return replace(self, sums=self.sums * scale, squares=self.squares * scale**2)


@dataclass(frozen=True, slots=True)
class Candidates(GradientSums):
    """Positions that may grow, each with its gradient sums and its exponential random number."""

    draws: Float[Tensor, "positions"]

    @classmethod
    def from_micro_batch(
        cls,
        indices: Int[Tensor, "positions"],
        gradients: Float[Tensor, "positions"],
        draws: Float[Tensor, "positions"],
    ) -> "Candidates":
        """Return candidates with the gradients of one micro-batch."""
        order = indices.argsort()
        return cls(indices[order].int(), gradients[order], gradients[order] ** 2, draws[order])

    @property
    def scores(self) -> Float[Tensor, "positions"]:
        """Scores of the candidates. Candidates with the largest scores grow first."""
        return self.sums.abs() / self.draws

    def best(self, count: int) -> "Candidates":
        """Return the `count` candidates with the largest scores."""
        return self if count >= len(self) else self[largest(self.scores, count).sort().values]


class Window:
    """The gradient window of one linear, for a topology event that chooses `count` positions within `pattern`.

    `outputs` and `inputs` are sums of squares over tokens: of each output's gradient, and of each input. `scales` are
    the factors by which clipping multiplied the gradients of the steps. `seed` sets the random numbers and the sample.
    """

    def __init__(self, target: Target, count: int, seed: int, pattern: Pattern = UNSTRUCTURED) -> None:
        self._target, self._pattern = target, pattern
        weight = target.weight
        empty = torch.zeros(0, dtype=master_dtype(weight.dtype), device=weight.device)
        self.count, self._seed = count, seed
        self.observed = 0
        self.growth = Candidates(empty.int(), empty, empty, empty)
        sampled = self._sample()
        self.sample = GradientSums(sampled, empty.new_zeros(len(sampled)), empty.new_zeros(len(sampled)))
        self.outputs, self.inputs = (empty.new_zeros(size) for size in weight.shape)
        self.scales: list[float] = []

    @property
    def _weight(self) -> Float[Tensor, "rows cols"]:
        return self._target.weight

    def tensors(self) -> dict[str, Tensor]:
        """Return all statistics as tensors by name."""
        lists = named_fields({"growth": self.growth, "sample": self.sample})
        scales = torch.tensor(self.scales, dtype=torch.float64)
        return {**lists, "outputs": self.outputs, "inputs": self.inputs, "scales": scales}

    def resume(self, tensors: Mapping[str, Tensor], observed: int) -> None:
        """Replace the statistics by saved ones. `observed` is the number of micro-batches in them."""
        self.growth, self.sample = (
            Candidates(**fields_of(tensors, "growth")),
            GradientSums(**fields_of(tensors, "sample")),
        )
        self.outputs, self.inputs, self.scales = tensors["outputs"], tensors["inputs"], tensors["scales"].tolist()
        self.observed = observed

    def clipped(self, _: Int[Tensor, "positions"], /) -> tuple[Candidates, GradientSums]:
        """Return the candidates and the sample with clipped gradients, like the gradients in Adam's moments."""
        scale = sum(self.scales) / len(self.scales) if self.scales else 1.0
        return self.growth.scaled(scale), self.sample.scaled(scale)

    def observe(
        self,
        left: Float[Tensor, "tokens rows"],
        right: Float[Tensor, "tokens cols"],
        active: Int[Tensor, "positions"],
    ) -> None:
        """Add one micro-batch to the statistics.

        `left` is the gradient of the linear's outputs, and `right` its inputs. `active` has the active positions, which
        cannot grow.
        """
        dtype = self.outputs.dtype
        self._add(left, right)
        taken = torch.cat([active, self.growth.indices]).sort().values
        if left.dtype != torch.bfloat16 or not _has_bfloat16(str(left.device)):
            left, right = left.to(dtype), right.to(dtype)
        for rows in row_chunks(self._weight.shape):
            gradient = sum_over_processes((left[:, rows].t() @ right).flatten())
            self._list(gradient.to(dtype), rows, taken)
        self.observed += 1

    def removal(self, kept: Int[Tensor, "positions"]) -> Int[Tensor, "removal"]:
        """Return the positions that may become zero, the least sensitive first.

        `kept` has the active positions that were kept. In an N:M pattern, the result has all nonzero or kept
        positions in the groups of the zeros that may grow. Without a pattern, it has the least sensitive nonzeros.
        Their number is at most the largest number of candidates for growth.
        """
        places = self._rivals(kept) if self._pattern.grouped else self._least_sensitive()
        return places[self._sensitivity(places).argsort(stable=True)]

    def _add(self, left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens cols"]) -> None:
        """Add the gradients of one micro-batch to the sums of all positions that are listed already."""
        dtype = self.outputs.dtype
        self.outputs = self.outputs + sum_over_processes(left.to(dtype).square().sum(0))
        self.inputs = self.inputs + sum_over_processes(right.to(dtype).square().sum(0))
        self.sample = self.sample.updated(sum_over_processes(sampled_product(left, right, self.sample.indices)))
        self.growth = self.growth.updated(sum_over_processes(sampled_product(left, right, self.growth.indices)))

    def _list(self, gradient: Float[Tensor, "chunk"], rows: slice, taken: Int[Tensor, "taken"]) -> None:
        """Find new candidates in the gradient of some rows. `taken` has the active and listed positions."""
        growth = self.growth.joined(self._new_candidates(gradient, rows, taken))
        self.growth = growth.best(self.count * CANDIDATES_PER_POSITION)

    def _sensitivity(self, places: Int[Tensor, "positions"]) -> Float[Tensor, "positions"]:
        """Return the square root of the loss increase if a weight became zero, for each of `places`, up to a factor.

        [ours] The increase is W^2 times the curvature (LeCun et al. 1990, Optimal Brain Damage). The curvature is the
        mean square of the output's gradient times the mean square of the input (Martens & Grosse 2015, section 3). The
        paper's |W * gradient| is often small only by chance.
        """
        rows, cols = places // self._weight.shape[1], places % self._weight.shape[1]
        return entries(self._weight, places).abs() * self.outputs.sqrt()[rows] * self.inputs.sqrt()[cols]

    def _sensitivities(self, rows: slice) -> Float[Tensor, "chunk cols"]:
        """Return the sensitivities of all weights of some rows."""
        return self._weight[rows].abs() * self.outputs.sqrt()[rows, None] * self.inputs.sqrt()

    def _least_sensitive(self) -> Int[Tensor, "least"]:
        """Return the positions of the least sensitive nonzeros, found chunk by chunk."""
        weight, most = self._weight, self.count * CANDIDATES_PER_POSITION
        least = torch.zeros(0, dtype=torch.int64, device=weight.device)
        sizes = self.outputs.new_zeros(0)
        for rows in row_chunks(weight.shape):
            zeros = (weight[rows] == 0).flatten()
            found = self._sensitivities(rows).flatten().neg_()
            found.add_(zeros, alpha=-torch.finfo(found.dtype).max)  # several times as fast as a masked fill
            chosen = largest(found, min(most, len(found) - int(zeros.sum())))
            least = torch.cat([least, chosen + rows.start * weight.shape[1]])
            sizes = torch.cat([sizes, found[chosen]])
            best = largest(sizes, most)
            least, sizes = least[best], sizes[best]
        return least.sort().values

    def _rivals(self, kept: Int[Tensor, "positions"]) -> Int[Tensor, "rivals"]:
        """Return the nonzero or kept positions in the groups of the zeros that may grow."""
        weight, growth = self._weight, self.growth.indices
        groups = torch.unique(growth[entries(weight, growth) == 0] // self._pattern.of)
        members = torch.arange(self._pattern.of, device=groups.device, dtype=groups.dtype)
        places: Tensor = (groups[:, None] * self._pattern.of + members).flatten()
        return places[(entries(weight, places) != 0) | torch.isin(places, kept)]

    def _new_candidates(self, gradient: Float[Tensor, "chunk"], rows: slice, taken: Int[Tensor, "taken"]) -> Candidates:
        """Return the entries of some rows with the best scores that are neither active nor already listed."""
        offset = rows.start * self._weight.shape[1]
        draws = self._draws(gradient, rows)
        scores = gradient.abs() / draws
        bounds = torch.tensor([offset, offset + len(gradient)], device=taken.device, dtype=taken.dtype)
        first, last = torch.searchsorted(taken, bounds).tolist()
        scores[taken[first:last] - offset] = 0
        places = largest(scores, self.count * CANDIDATES_PER_POSITION)
        places = places[scores[places] > 0]
        return Candidates.from_micro_batch(places + offset, gradient[places], draws[places])

    def _draws(self, gradient: Float[Tensor, "chunk"], rows: slice) -> Float[Tensor, "chunk"]:
        """Return the random numbers of the positions in some rows, which are the same on every call."""
        name = str(rows.start * self._weight.shape[1])
        random = generator(self._seed, name, gradient.device)
        uniform = torch.rand(gradient.shape, dtype=gradient.dtype, device=gradient.device, generator=random)
        return uniform.log_().neg_()  # several times as fast as `exponential_` on a CPU

    def _sample(self) -> Int[Tensor, "sampled"]:
        """Return a uniform sample of the nonzeros, sorted: the nonzeros among uniformly drawn positions."""
        drawn = torch.randint(self._weight.numel(), (4 * SAMPLE_SIZE,), generator=generator(self._seed, "sample"))
        places = drawn.to(self._weight.device)
        sampled: Tensor = torch.unique(places[entries(self._weight, places) != 0][:SAMPLE_SIZE])
        return sampled.int()
