"""DSnoT: the swaps of the paper, never worse on the calibration tokens, with the same number of zeros."""

import pytest
import torch
from torch import Tensor

from seft.config import UNSTRUCTURED, Pattern, PruneMethod, Refinement
from seft.prune.dsnot import Columns, refine
from tests.seft.prune.weights import correlated, make_weight, prune


def dsnot(dense: Tensor, pruned: Tensor, inputs: Tensor, pattern: Pattern) -> Tensor:
    """Refine by equations 3 to 6 of the paper in double precision, one row and one swap at a time."""
    dense, refined, inputs = dense.double(), pruned.double(), inputs.double()
    mean, variance, norms = inputs.mean(0), inputs.var(0, unbiased=False), inputs.norm(dim=0)
    for row, now in enumerate(refined):
        moved = set[int]()
        error = float(mean @ (now - dense[row]))
        for _ in range(50):
            sign = -1.0 if error > 0 else 1.0
            still = [column for column in range(len(now)) if column not in moved and dense[row, column] != 0]
            growing = [c for c in still if now[c] == 0 and sign * dense[row, c] * mean[c] > 0]
            if not growing:
                break
            grown = max(growing, key=lambda c: float(sign * dense[row, c] * mean[c] / variance[c]))
            remaining = [c for c in still if now[c] != 0]
            if pattern.grouped:
                rivals = [c for c in remaining if c // pattern.of == grown // pattern.of]
            else:
                rivals = [c for c in remaining if sign * now[c] * mean[c] < 0]
            if not rivals:
                break
            lost = min(rivals, key=lambda c: float(now[c].abs() * norms[c]))
            after = error + float(dense[row, grown] * mean[grown] - now[lost] * mean[lost])
            if abs(after) >= abs(error):
                break
            now[grown], now[lost], error = dense[row, grown], 0.0, after
            moved |= {grown, lost}
    return refined


@pytest.mark.parametrize("pattern", [UNSTRUCTURED, Pattern(2, 4)], ids=str)
@pytest.mark.parametrize("method", PruneMethod)
def test_the_mask_of_every_method_is_refined_as_in_the_paper_in_double_precision(
    method: PruneMethod, pattern: Pattern
) -> None:
    weight, inputs = make_weight(12, 80), correlated(400, 80)
    pruned = prune(weight, inputs, method, 0.5, pattern=pattern)
    columns = Columns(inputs.mean(0), inputs.var(0, unbiased=False), inputs.norm(dim=0))
    refined, expected = refine(weight, pruned, columns, pattern), dsnot(weight, pruned, inputs, pattern)
    assert torch.equal(refined, expected.float())
    assert not torch.equal(refined, pruned)
    errors = [(inputs.double() @ (each.double() - weight).T).norm(dim=0) for each in (pruned, expected)]
    better = torch.where((errors[1] > errors[0])[:, None], pruned, refined)
    assert torch.equal(prune(weight, inputs, method, 0.5, pattern=pattern, refine=Refinement.DSNOT), better)


@pytest.mark.parametrize("pattern", [UNSTRUCTURED, Pattern(2, 4)], ids=str)
@pytest.mark.parametrize("method", PruneMethod)
def test_no_row_has_a_larger_error_on_the_calibration_tokens(method: PruneMethod, pattern: Pattern) -> None:
    for seed, shift in ((1, 0.0), (2, 1.0), (3, -4.0)):
        weight, inputs = make_weight(24, 120, seed), correlated(500, 120, seed + 10) + shift
        before = prune(weight, inputs, method, 0.5, pattern=pattern)
        after = prune(weight, inputs, method, 0.5, pattern=pattern, refine=Refinement.DSNOT)
        errors = [(inputs.double() @ (each - weight).double().T).norm(dim=0) for each in (before, after)]
        assert (errors[1] <= errors[0] * (1 + 1e-5)).all()


@pytest.mark.parametrize("method", [PruneMethod.MAGNITUDE, PruneMethod.WANDA, PruneMethod.RIA])
def test_masks_become_clearly_better_if_inputs_have_a_mean(method: PruneMethod) -> None:
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
