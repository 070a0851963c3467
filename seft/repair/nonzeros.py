"""A linear in which all nonzeros are trained in place, in the memory of inference.

The gradient of the weight matrix exists for one linear at a time. If a step is one micro-batch, the backward pass of
the linear also takes the optimizer step, so no gradient is stored. Otherwise the gradients of the nonzeros are summed
in float32 until the step ends. Both ways give the same bits for the same gradient. Several processes sum the gradients
of the nonzeros over all of them before the step.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from seft.checkpoint.pruned_state import pack_bits, unpack_bits
from seft.config import Compare, Pattern
from seft.dtypes import master_dtype
from seft.errors import TrainError
from seft.models.targets import SPLIT, Target, count_nonzeros
from seft.prune import curvature
from seft.prune.mask import smallest_overall
from seft.repair import factored, rise, swaps
from seft.repair.factored import Moments
from seft.repair.in_place import SingleTrainer
from seft.repair.positions import fields_of, named_fields
from seft.repair.processes import is_first, process_count, sum_over_processes
from seft.repair.sampled import row_chunks
from seft.repair.swaps import Observed, Swap
from seft.repair.window import GradientSums

CURVATURE_DECAY = 0.9
"""Decay per step of the moving averages that give the curvature."""
FEWEST_TOKENS = 1e-3
"""Average number of tokens per step below which the averages of an expert without tokens stay as they are."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a backward pass does: the number of the step, and its learning rate if it also takes the optimizer step.

    `collects` is True if it also collects the gradients of zeros that may grow.
    """

    step: int
    rate: float | None
    collects: bool = False


class NonzeroLinear(SingleTrainer):
    """A linear whose nonzeros are all trained. Zeros stay zero, except those that `swap` lets grow.

    The weight matrix of `target` is changed in place. The caller must call `product` instead of the linear's forward
    function, and must set `plan` before every step. `seed` and `name` set the random numbers of the rounding. `watch`
    keeps the mean squares of inputs and output gradients, which tell how important each weight is. `swapping` also
    keeps the gradients of zeros that may grow.
    """

    def __init__(self, target: Target, seed: int, name: str, *, watch: bool = False, swapping: bool = False) -> None:
        self._target, self._seed, self._name = target, seed, name
        weight = target.weight
        self.plan, self._stepped = Plan(0, None), 0
        self._moments = Moments.start(weight)
        rows, cols = (weight.new_zeros(size, dtype=master_dtype(weight.dtype)) for size in weight.shape)
        self._inputs, self._outputs = (cols, rows) if watch or swapping else (cols[:0], rows[:0])
        self._tokens = self._inputs[:1].clone()
        self._new_inputs, self._new_outputs, self._new_tokens = map(torch.zeros_like, self._observations)
        self._sum: Tensor | None = None
        self._unpruned = pack_bits(weight != 0) if swapping else None
        self.candidates = GradientSums.empty(rows)
        self._norm = rows.new_zeros(())
        self._leaf = rows.new_zeros(0).requires_grad_()

    @property
    def trained_values(self) -> int:
        """Number of nonzeros."""
        return count_nonzeros(self.weight)

    @property
    def zeros(self) -> int:
        """Number of zeros."""
        return self.weight.numel() - count_nonzeros(self.weight)

    @torch.no_grad()
    def gradient(self, left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens cols"]) -> Float[Tensor, "0"]:
        """Use the gradient of one micro-batch as the plan says. Returns nothing to accumulate.

        `left` is the gradient of the linear's outputs, `right` are its inputs.
        """
        if len(self._inputs):
            self._new_inputs += right.to(self._inputs.dtype).square().sum(0)
            self._new_outputs += left.to(self._outputs.dtype).square().sum(0)
            self._new_tokens += len(right)
        gradient = left.t() @ right
        if self.plan.collects:
            self.candidates = swaps.observe(self.candidates, gradient, self.weight)
        if self.plan.rate is not None:
            self._step(self._over_processes(gradient), self.plan.rate)
        else:
            part = _gather(gradient, self.weight).to(self._norm.dtype)
            self._sum = part if self._sum is None else self._sum.add_(part)
        return self._leaf.detach()

    def take_gradient(self) -> Float[Tensor, "values"]:
        """Return the summed gradient of the nonzeros and reset it; if the step is already taken, return its norm."""
        if self.plan.rate is not None:
            norm, self._norm = self._norm[None], torch.zeros_like(self._norm)
            return norm
        gradient, self._sum = self._sum, None
        return self._norm.new_zeros(self.trained_values) if gradient is None else gradient

    def update(self, gradient: Float[Tensor, "values"], rate: float, _weight_decay: float = 0.0) -> None:
        """Take one optimizer step with the gradient of the nonzeros, unless the backward pass has taken it."""
        if self.plan.rate is None:
            # Like the gradient of a backward pass, it is contiguous, even if the weight matrix is transposed.
            dense = torch.zeros(self.weight.shape, dtype=gradient.dtype, device=gradient.device)
            _scatter(dense, self.weight != 0, gradient)
            self._step(dense, rate)

    def update_curvature(self) -> None:
        """Add the sums of a step, over all processes, to their moving averages, and reset them.

        The averages of an expert without tokens fall until its tokens are below `FEWEST_TOKENS`, and then stay. Else
        their products would underflow, and all its weights would be equally important.
        """
        if not len(self._tokens):
            return
        kept = (self._new_inputs, self._new_outputs, self._new_tokens)
        inputs, outputs, tokens = map(sum_over_processes, kept)
        idle = (tokens == 0) & (self._tokens < FEWEST_TOKENS)
        share = torch.full_like(self._tokens, 1 - CURVATURE_DECAY).masked_fill_(idle, 0.0)
        for average, new in zip(self._observations, (inputs, outputs, tokens), strict=True):
            average.lerp_(new, share)
        for new in kept:
            new.zero_()

    @property
    def tokens(self) -> float:
        """Moving average of the number of tokens that reach the linear in a step. It starts at zero."""
        return float(self._tokens)

    def importance(self, batch_tokens: float = 0.0) -> Float[Tensor, "rows cols"]:
        """Return the estimated loss increase if each weight became zero, up to a common factor; -1 for zeros.

        `batch_tokens` is `tokens` of a linear that all tokens reach. Give it if importances of linears are compared.
        """
        return curvature.importance(self.weight, self._inputs, self._corrected_outputs(batch_tokens))

    def prune(self, zeros: int, compare: Compare, pattern: Pattern) -> int:
        """Set the least important weights to zero, so that at most `zeros` are zero. Returns how many became zero."""
        missing = zeros - self.zeros
        if missing <= 0:
            return 0
        importance = self.importance()
        chosen = rise.choose(importance, zeros, compare, pattern) & (importance >= 0)
        if (count := int(chosen.sum())) > missing:  # some rows already have more zeros than their part of `zeros`
            chosen, count = smallest_overall(importance.masked_fill(~chosen, torch.inf), missing), missing
        self.weight.masked_fill_(chosen, 0)
        self._moments.count(self.weight)
        if self._unpruned is not None:
            self._unpruned = self._unpruned & pack_bits(self.weight != 0)
        return count

    def swap(self, observed: Observed, pattern: Pattern, batch_tokens: float) -> tuple[Swap, Moments]:
        """Swap zeros and nonzeros where the estimated gain is larger than the estimated loss.

        `batch_tokens` is `tokens` of a linear that all tokens reach. Returns what `undo` needs. The list of candidates
        is then empty.
        """
        started = 1 - CURVATURE_DECAY**self.plan.step  # The averages started at zero.
        outputs, inputs = self._corrected_outputs(batch_tokens) / started, self._inputs / started
        growth = swaps.estimate_growth(self.weight, self.candidates, observed, outputs, inputs)
        losses = curvature.importance(self.weight, inputs, outputs).div_(2).masked_fill_(self.weight == 0, torch.inf)
        swap = swaps.choose(self.weight, growth, losses, pattern, int(swaps.MAX_SWAPPED_FRACTION * self.trained_values))
        swap.apply(self.weight)
        before = self._moments.copy()
        self._moments.count(self.weight)
        self.candidates = GradientSums.empty(self._norm)
        return swap, before

    def undo(self, swap: Swap, before: Moments) -> None:
        """Undo a swap bit for bit."""
        swap.undo(self.weight)
        self._moments = before

    def reactivated_count(self) -> int:
        """Return the number of weights that were zero when pruning ended and are nonzero now."""
        if self._unpruned is None:
            return 0
        unpruned = unpack_bits(self._unpruned, self.weight.shape[1]).to(self.weight.device)
        return int(((self.weight != 0) & ~unpruned).sum())

    def tensors(self) -> dict[str, Tensor]:
        """Return the nonzeros and where they are, as copies in host memory, and the statistics.

        If the weight is split over processes, the others only help the first one to gather it, and copy no nonzeros.
        """
        weight = self.weight
        if self._target.module in SPLIT and not is_first():
            return self._statistics()
        weights = {"values": _gather(weight, weight).cpu(), "kept": pack_bits(weight != 0)}
        if self._unpruned is not None:
            weights["unpruned"] = self._unpruned
        return {**weights, **self._statistics(), **named_fields({"candidates": self.candidates})}

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the weights and the statistics by saved ones."""
        kept = unpack_bits(tensors["kept"].cpu(), self.weight.shape[1]).to(self.weight.device)
        self.weight.zero_()
        _scatter(self.weight, kept, tensors["values"])
        if self._unpruned is not None:
            self._unpruned = tensors["unpruned"].cpu()
        for name, tensor in self._statistics().items():
            tensor.copy_(tensors[name])
        self.candidates = GradientSums(**fields_of(tensors, "candidates"))

    def _over_processes(self, gradient: Float[Tensor, "rows cols"]) -> Float[Tensor, "rows cols"]:
        """Return the sum of a gradient over all processes. With several, it is zero at the zeros of the weight."""
        if process_count() == 1:
            return gradient
        values, kept = sum_over_processes(_gather(gradient, self.weight)), self.weight != 0
        _scatter(gradient.zero_(), kept, values)
        return gradient

    def _statistics(self) -> dict[str, Tensor]:
        named = zip(("inputs", "outputs", "tokens"), self._observations, strict=True)
        return {**self._moments.tensors(), **dict(named)}

    @property
    def _observations(self) -> tuple[Tensor, Tensor, Tensor]:
        """Moving averages over steps: sums of the squares of inputs and of output gradients, and number of tokens."""
        return self._inputs, self._outputs, self._tokens

    def _corrected_outputs(self, batch_tokens: float) -> Float[Tensor, "rows"]:
        """Return the averages of output gradients, corrected for an expert that only some of the tokens reach.

        Without the correction, the product with the averages of inputs is proportional to the square of the number of
        tokens. The curvature is proportional to the number of tokens.
        """
        return self._outputs * (batch_tokens / self.tokens) if batch_tokens and self.tokens else self._outputs

    @property
    def observed(self) -> bool:
        """True if the linear got tokens, so that the importance of its weights is known."""
        return bool(self._outputs.any())

    def _step(self, gradient: Float[Tensor, "rows cols"], rate: float) -> None:
        if self.plan.step == self._stepped:
            raise TrainError(
                f"{self._name} must run once in a step of one micro-batch; the model calls it several times. Set"
                " batch_tokens to more than micro_batch times sequence_tokens, so that a step has several"
                " micro-batches."
            )
        self._stepped = self.plan.step
        name = f"{self._name} {self.plan.step}"
        self._norm = factored.step(self.weight, gradient, self._moments, rate, seed=self._seed, name=name)
        self._target.store()


def _gather(matrix: Shaped[Tensor, "rows cols"], weight: Float[Tensor, "rows cols"]) -> Shaped[Tensor, "nonzeros"]:
    """Return the entries of `matrix` at the nonzeros of `weight`, gathered a few rows at a time to save memory."""
    return torch.cat([matrix[rows][weight[rows] != 0] for rows in row_chunks(weight.shape)])


def _scatter(
    matrix: Shaped[Tensor, "rows cols"], kept: Bool[Tensor, "rows cols"], values: Shaped[Tensor, "kept"]
) -> None:
    """Write values into a matrix where `kept` is true, a few rows at a time to save memory."""
    begin = 0
    for rows in row_chunks(matrix.shape):
        end = begin + int(kept[rows].sum())
        matrix[rows] = matrix[rows].masked_scatter(kept[rows], values[begin:end])
        begin = end
