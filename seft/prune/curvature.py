"""The importance of a weight: how much the loss of the model would rise if the weight became zero.

It is W^2 times the curvature (LeCun et al. 1990, Optimal Brain Damage). The curvature is the product of two sums over
tokens: of the squares of the output's gradient, and of the squares of the input (Martens & Grosse 2015, section 3).

The importances of different linears can be compared. [ours] With the allocation `curvature`, the least important
weights of the dense model decide how many zeros each linear gets. The pruning method then chooses the zeros of a linear
by its own scores. It multiplies the scores of a row by the root mean square of the row's output gradients.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seft.config import MOST_SPARSE, Allocation
from seft.errors import ConfigError, PruneError
from seft.models.products import Handler, Inputs, Outputs, Product
from seft.models.targets import SPLIT, Target
from seft.prune.mask import zeros_first
from seft.prune.walk import Walk, Windows

FEWEST_TOKENS = 64
"""An expert that got fewer tokens is not compared with other linears [ours]."""
SMALLEST_ROW = 1e-2
"""Lower limit of the factor of a row, relative to the root mean square of all rows."""


class Curvature:
    """Sums over tokens of the squares of a linear's inputs and of the gradients of its outputs, in float32."""

    def __init__(self, target: Target) -> None:
        rows, cols = target.shape
        device = target.parameter.device
        self._target, self._tokens = target, 0
        self.inputs, self.outputs = torch.zeros(cols, device=device), torch.zeros(rows, device=device)

    @property
    def known(self) -> bool:
        """False if few tokens reached the expert, or if no loss depends on the outputs."""
        return bool(self.outputs.any()) and (not self._target.expert or self._tokens >= FEWEST_TOKENS)

    def handle(self, inputs: Inputs, product: Product) -> Outputs:
        """Compute the outputs, and observe the inputs now and the gradients of the outputs later."""
        outputs = product(inputs)
        self._tokens += inputs.shape[:-1].numel()
        self.inputs += _squares(inputs).to(self.inputs.device)
        if outputs.requires_grad:  # The choice of tokens for sparse attention may run without gradients.
            outputs.register_hook(self._observe)  # type: ignore[no-untyped-call]
        return outputs

    def _observe(self, gradient: Outputs) -> None:
        self.outputs += _squares(gradient).to(self.outputs.device)

    def importance(self) -> Float[Tensor, "rows cols"]:
        """Return the importance of each weight now, up to a factor that all linears share."""
        return importance(self._target.weight, self.inputs / max(1, self._tokens), self.outputs)

    def row_factors(self) -> Float[Tensor, "rows 1"] | None:
        """Return the root mean square of the gradients of each output, relative to all outputs.

        They are on the device on which the weight is now. Returns None if the curvature is not `known`.
        """
        if not self.known:
            return None
        factors = (self.outputs / self.outputs.mean()).sqrt().clamp(min=SMALLEST_ROW)
        return factors[:, None].to(self._target.parameter.device)


@torch.no_grad()
def measure(walk: Walk, targets: Sequence[Mapping[str, Target]], windows: Windows) -> list[dict[str, Curvature]]:
    """Return the curvature of every target, by block and name, from the gradients of the loss on some windows.

    Raises PruneError with the name of a target if an input or a gradient is not finite. Raises ConfigError if the model
    is split over processes, because only the first process runs this backward pass.
    """
    if any(target.module in SPLIT for of_block in targets for target in of_block.values()):
        way_out = "Use uniform, or a model that is not split."
        raise ConfigError("allocation", "must be uniform if the model is split", str(Allocation.CURVATURE), way_out)
    found = [{name: Curvature(target) for name, target in of_block.items()} for of_block in targets]
    handlers: list[Mapping[Target, Handler]] = [
        {target: found[number][name].handle for name, target in of_block.items()}
        for number, of_block in enumerate(targets)
    ]
    walk.backward(windows, handlers)
    places = {f"block {number}, {name}": each for number, block in enumerate(found) for name, each in block.items()}
    for place, each in places.items():
        _require_finite(place, "inputs", each.inputs)
    for place, each in reversed(places.items()):
        _require_finite(place, "gradients", each.outputs)
    return found


def _require_finite(place: str, what: str, sums: Tensor) -> None:
    if not sums.isfinite().all():
        raise PruneError(f"{place}: {what} must be finite; some are not. Check the model's weights and dtype.")


def allocate(
    curvatures: Sequence[Mapping[str, Curvature]], uniform: Sequence[Sequence[int]], heartbeat: Callable[[], None]
) -> list[list[int]]:
    """Return the number of zeros of each target.

    The least important weights of the whole model are chosen, and each target gets a zero for each of its chosen
    weights. `uniform` has the numbers of zeros with which all targets are equally sparse. The total stays the same. A
    target whose importance is not known keeps its number [ours]. No target gets more zeros than the fraction
    `MOST_SPARSE`.
    `heartbeat` is called regularly, and may raise an exception to stop.
    """
    counts = [list(of_block) for of_block in uniform]
    free = [
        (number, place, each)
        for number, of_block in enumerate(curvatures)
        for place, each in enumerate(of_block.values())
        if each.known
    ]
    total = sum(counts[number][place] for number, place, _ in free)

    def score(curvature: Curvature) -> Float[Tensor, "rows cols"]:
        heartbeat()
        return curvature.importance()

    zeros = split_below_limit([partial(score, each) for *_, each in free], total)
    for (number, place, _), count in zip(free, zeros, strict=True):
        counts[number][place] = count
    return counts


def importance(
    weight: Float[Tensor, "rows cols"], inputs: Float[Tensor, "cols"], outputs: Float[Tensor, "rows"]
) -> Float[Tensor, "rows cols"]:
    """Return the estimated loss increase if a weight became zero, up to a factor that all weights share.

    The product of `inputs` and `outputs` is the curvature, up to a common factor. `inputs` has the mean over tokens of
    the square of each input. `outputs` has the sum over tokens of the square of each output's gradient. [ours] If
    `outputs` is zero, because no token reached an expert, the importance is the square of the weight.
    """
    if not outputs.any():
        inputs, outputs = torch.ones_like(inputs), torch.ones_like(outputs)
    return zeros_first(weight.to(inputs.dtype).square().mul_(inputs).mul_(outputs[:, None]), weight)


def split_below_limit(scores: Sequence[Callable[[], Float[Tensor, "rows cols"]]], zeros: int) -> list[int]:
    """Return the same as `split_over_model`, except that no matrix gets more zeros than the fraction `MOST_SPARSE`.

    A matrix that already has more zeros keeps them. The zeros above the limit go to the other matrices.
    """
    limits = [_limit(score()) for score in scores]
    free = list(range(len(scores)))
    while free:
        found = dict(zip(free, split_over_model([scores[place] for place in free], zeros), strict=True))
        full = [place for place, count in found.items() if count > limits[place]]
        if not full:
            return [found.get(place, limit) for place, limit in enumerate(limits)]
        zeros -= sum(limits[place] for place in full)
        free = [place for place in free if place not in full]
    return limits


def _limit(score: Float[Tensor, "rows cols"]) -> int:
    """Return the largest number of zeros of a matrix. Present zeros have a negative score, and stay."""
    return max(int(MOST_SPARSE * score.numel()), int((score < 0).sum()))


def split_over_model(scores: Sequence[Callable[[], Float[Tensor, "rows cols"]]], zeros: int) -> list[int]:
    """Return how many zeros each matrix gets if the `zeros` smallest scores of all matrices become zero.

    `scores` has one function per matrix, because all scores together may not fit into memory. Each is called several
    times. Present zeros have the score -1 and come first. Of equal scores, the ones in the first matrices are chosen.
    """
    present = [int((score() < 0).sum()) for score in scores]
    wanted = zeros - sum(present)
    if wanted <= 0:
        return present
    # Find the score with the rank `wanted` from counts of the upper half of the bits of all scores, and then of the
    # lower half. Scores are not negative, so their bits have the same order.
    upper, before = _find_bin((_histogram(_bits(score()) >> 16) for score in scores), wanted)
    lower, inside = _find_bin((_histogram(_lower_bits(score(), upper)) for score in scores), wanted - before)
    last, ties = (upper << 16) + lower, wanted - before - inside
    counts = []
    for score, already in zip(scores, present, strict=True):
        bits = _bits(score())
        equal = min(ties, int((bits == last).sum()))
        counts.append(already + int(((bits >= 0) & (bits < last)).sum()) + equal)
        ties -= equal
    return counts


def _bits(score: Float[Tensor, "rows cols"]) -> Int[Tensor, "rows cols"]:
    """Return the scores, rounded to float32, as whole numbers in the same order. Present zeros get -1."""
    return score.float().view(torch.int32).masked_fill(score < 0, -1)


def _lower_bits(score: Float[Tensor, "rows cols"], upper: int) -> Int[Tensor, "rows cols"]:
    """Return the lower half of the bits of the scores whose upper half is `upper`, and -1 for the others."""
    bits = _bits(score)
    return (bits & 0xFFFF).masked_fill_(bits >> 16 != upper, -1)


def _histogram(values: Int[Tensor, "rows cols"]) -> Int[Tensor, "bins"]:
    """Count the values from 0 to 2^16 - 1. Ignores -1."""
    return torch.bincount(values.flatten() + 1, minlength=(1 << 16) + 1)[1:]


def _find_bin(counts: Iterable[Int[Tensor, "bins"]], wanted: int) -> tuple[int, int]:
    """Return the bin that contains the entry with the rank `wanted`, and the number of entries in the bins before.

    Only the sum of `counts` is in memory, because a model may have thousands of matrices.
    """
    total = reduce(Tensor.add_, counts)
    ends = total.cumsum(0)
    place = int(torch.searchsorted(ends, wanted))
    return place, int(ends[place] - total[place])


def _squares(values: Float[Tensor, "*batch size"]) -> Float[Tensor, "size"]:
    """Return the sum of squares for each index of the last dimension."""
    return values.detach().reshape(-1, values.shape[-1]).float().square().sum(0)
