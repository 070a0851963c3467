"""DSnoT: the swaps of the paper, never worse on the calibration tokens, and none that a budget would notice."""

from itertools import product

import pytest
import torch
from torch import Tensor

from seft.config import Pattern, PruneMethod, Refinement
from seft.prune.dsnot import Columns, refine
from tests.seft.test_prune_methods import correlated, make_weight, prune


def swaps(weight: Tensor, kept: Tensor, inputs: Tensor, cycles: int) -> Tensor:
    """The mask by equations 3 to 6 of the paper in double precision, one row and one swap at a time."""
    weight, kept, inputs = weight.double(), kept.clone(), inputs.double()
    mean, variance, norms = inputs.mean(0), inputs.var(0, unbiased=False), inputs.norm(dim=0)
    for row, moved in product(range(len(weight)), [set[int]()]):
        moved.clear()
        error = float((mean * weight[row])[~kept[row]].sum()) * -1
        for _ in range(cycles):
            sign = -1.0 if error > 0 else 1.0
            effect = weight[row] * mean
            growing = [c for c in range(len(mean)) if not kept[row, c] and c not in moved and sign * effect[c] > 0]
            pruning = [c for c in range(len(mean)) if kept[row, c] and c not in moved and sign * effect[c] < 0]
            if not growing or not pruning:
                break
            grown = max(growing, key=lambda c: float(sign * effect[c] / variance[c]))
            lost = min(pruning, key=lambda c: float(weight[row, c].abs() * norms[c]))
            after = error + float(effect[grown]) - float(effect[lost])
            if abs(after) >= abs(error):
                break
            kept[row, grown], kept[row, lost], error = True, False, after
            moved |= {grown, lost}
    return kept


def test_the_mask_is_that_of_the_paper_in_double_precision() -> None:
    weight, inputs = make_weight(12, 80), correlated(400, 80)
    pruned = prune(weight, inputs, PruneMethod.WANDA, 0.6)
    columns = Columns(inputs.mean(0), inputs.var(0, unbiased=False), inputs.norm(dim=0))
    refined = refine(weight, pruned, columns)
    expected = swaps(weight, pruned != 0, inputs, cycles=50)
    assert torch.equal(refined != 0, expected)
    assert torch.equal(refined, weight.masked_fill(~expected, 0.0))
    assert not torch.equal(refined, pruned)


@pytest.mark.parametrize("pattern", [Pattern(1, 1), Pattern(2, 4)], ids=str)
@pytest.mark.parametrize("method", PruneMethod)
def test_no_row_errs_more_on_the_calibration_tokens(method: PruneMethod, pattern: Pattern) -> None:
    for seed, shift in ((1, 0.0), (2, 1.0), (3, -4.0)):
        weight, inputs = make_weight(24, 120, seed), correlated(500, 120, seed + 10) + shift
        before = prune(weight, inputs, method, 0.5, pattern=pattern)
        after = prune(weight, inputs, method, 0.5, pattern=pattern, refine=Refinement.DSNOT)
        errors = [(inputs.double() @ (each - weight).double().T).norm(dim=0) for each in (before, after)]
        assert (errors[1] <= errors[0] * (1 + 1e-5)).all()


@pytest.mark.parametrize("method", [PruneMethod.MAGNITUDE, PruneMethod.WANDA, PruneMethod.RIA])
def test_masks_become_clearly_better_where_inputs_have_a_mean(method: PruneMethod) -> None:
    weight, inputs = make_weight(24, 120), correlated(500, 120) + 1.0
    before, after = (prune(weight, inputs, method, 0.6, refine=refine) for refine in Refinement)
    assert (inputs @ (after - weight).T).norm() < 0.97 * (inputs @ (before - weight).T).norm()


@pytest.mark.parametrize("method", PruneMethod)
def test_every_row_keeps_its_number_of_zeros_and_zeros_stay(method: PruneMethod) -> None:
    weight, inputs = make_weight(16, 100), correlated(300, 100) + 1.0
    already = torch.rand(16, 100, generator=torch.Generator().manual_seed(2)) < 0.3
    weight.masked_fill_(already, 0.0)
    before, after = (prune(weight, inputs, method, 0.6, refine=refine) for refine in Refinement)
    assert torch.equal((before == 0).sum(1), (after == 0).sum(1))
    assert (after[already] == 0).all()
