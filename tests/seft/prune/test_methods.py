"""Each pruner on one weight: equal to its paper's formula, with exact numbers of zeros."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seft.config import Allocation, Compare, Pattern, PruneConfig, PruneMethod, PruneSchedule
from seft.errors import PruneError
from seft.prune.mask import smallest_per_row
from seft.prune.methods import comparison, make_pruner
from seft.prune.statistics import Batch
from tests.seft.prune.weights import correlated, make_weight, prune

WITH_TEXT = [method for method in PruneMethod if PruneConfig(0.5, method).text_users]
BY_ROW = [method for method in PruneMethod if method is not PruneMethod.SPARSEGPT]
"""The methods that can compare the weights of a row."""


def test_magnitude_zeroes_the_smallest_of_the_linear() -> None:
    weight = make_weight(7, 9)
    threshold = weight.abs().flatten().sort().values[int(63 * 0.6)]
    expected = torch.where(weight.abs() < threshold, 0.0, weight)
    assert torch.equal(prune(weight, torch.ones(4, 9), PruneMethod.MAGNITUDE, 0.6), expected)


def test_wanda_zeroes_the_smallest_of_each_row_by_weight_times_input_norm() -> None:
    weight, inputs = make_weight(6, 20), correlated(64, 20)
    expected = weight.clone()
    for row in range(6):
        scores = [abs(weight[row, col].item()) * math.hypot(*inputs[:, col].tolist()) for col in range(20)]
        for col in sorted(range(20), key=scores.__getitem__)[: int(20 * 0.58)]:
            expected[row, col] = 0.0
    assert torch.equal(prune(weight, inputs, PruneMethod.WANDA, 0.58, compare=Compare.ROW), expected)


def test_ria_zeroes_the_smallest_of_the_linear_by_fractions_of_row_and_column_times_root_of_norm() -> None:
    weight, inputs = make_weight(6, 20), correlated(64, 20)
    size, norms = weight.double().abs(), inputs.double().square().sum(0).sqrt()
    scores = torch.empty(6, 20, dtype=torch.float64)
    for row in range(6):
        for col in range(20):
            fractions = size[row, col] / size[row].sum() + size[row, col] / size[:, col].sum()
            scores[row, col] = fractions * math.sqrt(norms[col])
    threshold = scores.flatten().sort().values[int(120 * 0.55)]
    expected = weight.masked_fill(scores < threshold, 0.0)
    assert torch.equal(prune(weight, inputs, PruneMethod.RIA, 0.55), expected)


@pytest.mark.parametrize("sparsity", [0.6, 0.7, 0.8])
def test_pruners_that_use_more_of_the_inputs_have_smaller_errors(sparsity: float) -> None:
    weight, inputs = make_weight(32, 256), correlated(2048, 256)
    errors = {
        method: (inputs @ (weight - prune(weight, inputs, method, sparsity)).T).norm().item() for method in PruneMethod
    }
    assert max(errors[PruneMethod.ALPS], errors[PruneMethod.ADMM]) < 0.8 * errors[PruneMethod.SPARSEGPT]
    assert errors[PruneMethod.SPARSEGPT] < 0.8 * errors[PruneMethod.WANDA]
    assert max(errors[PruneMethod.WANDA], errors[PruneMethod.RIA]) < 0.8 * errors[PruneMethod.MAGNITUDE]


@pytest.mark.parametrize("method", PruneMethod)
@settings(deadline=None)
@given(rows=st.integers(1, 9), cols=st.integers(1, 150), sparsity=st.floats(0, 0.99))
def test_a_linear_has_the_requested_zeros_to_within_one_weight(
    method: PruneMethod, rows: int, cols: int, sparsity: float
) -> None:
    zeros = int((prune(make_weight(rows, cols), correlated(64, cols), method, sparsity) == 0).sum())
    assert 0 <= rows * cols * sparsity - zeros < 1


@pytest.mark.parametrize("method", PruneMethod)
@pytest.mark.parametrize("dead", [range(120), range(200, 300), range(0, 300, 3)], ids=["first", "last", "spread"])
def test_inputs_that_are_always_zero_change_no_number_of_zeros(method: PruneMethod, dead: range) -> None:
    inputs = correlated(512, 300)
    inputs[:, list(dead)] = 0
    pruned = prune(make_weight(8, 300), inputs, method, 0.5)
    assert int((pruned == 0).sum()) == 8 * 150


@pytest.mark.parametrize("method", [PruneMethod.SPARSEGPT, PruneMethod.ALPS, PruneMethod.ADMM])
@pytest.mark.parametrize("sparsity", [0.2, 0.4])
def test_weights_of_such_inputs_become_zero_before_all_others(method: PruneMethod, sparsity: float) -> None:
    inputs = correlated(512, 300)
    inputs[:, :120] = 0
    pruned = prune(make_weight(8, 300), inputs, method, sparsity)
    assert int((pruned[:, :120] == 0).sum()) == 8 * 300 * sparsity
    assert pruned[:, 120:].all()


@pytest.mark.parametrize("method", PruneMethod)
def test_weights_of_such_inputs_that_need_not_become_zero_keep_their_values(method: PruneMethod) -> None:
    inputs, weight = correlated(512, 300), make_weight(8, 300)
    inputs[:, :150] = 0
    weight[:, ::10] = 0
    pruned = prune(weight, inputs, method, 0.2)
    assert int((pruned == 0).sum()) == 8 * 60
    kept = pruned[:, :150] != 0
    assert torch.equal(pruned[:, :150][kept], weight[:, :150][kept])


@pytest.mark.parametrize("method", BY_ROW)
@settings(deadline=None)
@given(rows=st.integers(1, 9), cols=st.integers(1, 150), sparsity=st.floats(0, 0.99))
def test_every_row_rounds_down_only_if_rows_are_asked_for(
    method: PruneMethod, rows: int, cols: int, sparsity: float
) -> None:
    weight, inputs = make_weight(rows, cols), correlated(64, cols)
    pruned = prune(weight, inputs, method, sparsity, compare=Compare.ROW)
    assert (pruned == 0).sum(1).tolist() == [int(cols * sparsity)] * rows


@pytest.mark.parametrize("method", BY_ROW)
@settings(deadline=None)
@given(rows=st.integers(1, 9), cols=st.integers(1, 150), fraction=st.floats(0, 1))
def test_any_number_of_zeros_is_split_over_the_rows_that_it_compares(
    method: PruneMethod, rows: int, cols: int, fraction: float
) -> None:
    zeros = int(rows * cols * fraction)
    pruner = make_pruner(make_weight(rows, cols), zeros, PruneConfig(0.5, method, compare=Compare.ROW))
    pruner.observe(Batch(correlated(64, cols)[None]))
    of_rows = (pruner.prune() == 0).sum(1)
    assert of_rows.sum() == zeros
    assert of_rows.max() - of_rows.min() <= 1


@pytest.mark.parametrize(("cols", "sparsity"), [(64, 0.6), (64, 0.99), (576, 0.6), (1536, 0.7)])
def test_the_fraction_of_zeros_is_the_one_that_was_asked_for(cols: int, sparsity: float) -> None:
    pruned = prune(make_weight(64, cols), correlated(256, cols), PruneMethod.WANDA, sparsity)
    assert float((pruned == 0).double().mean()) == pytest.approx(sparsity, abs=1 / pruned.numel())


@settings(deadline=None)
@given(rows=st.integers(1, 8), cols=st.integers(1, 20), fraction=st.floats(0, 1), seed=st.integers(0, 999))
def test_the_rows_where_it_costs_least_get_one_zero_more(rows: int, cols: int, fraction: float, seed: int) -> None:
    # Few different scores, so that many are equal.
    score = torch.randint(12, (rows, cols), generator=torch.Generator().manual_seed(seed)).float()
    zeros = int(rows * cols * fraction)
    each, more = divmod(zeros, rows)
    mask = smallest_per_row(score, zeros)
    order = [sorted(range(cols), key=lambda col, row=row: float(score[row, col])) for row in range(rows)]  # type: ignore[misc]
    ranked = sorted(range(rows), key=lambda row: float(score[row, order[row][each]])) if more else []
    for row in range(rows):
        expected = order[row][: each + (row in ranked[:more])]
        assert mask[row].nonzero().flatten().tolist() == sorted(expected)


@pytest.mark.parametrize("method", PruneMethod)
@pytest.mark.parametrize("shares", [(0.3, 0.3), (0.9, 0.9), (1.0, 0.1)], ids=str)
def test_existing_zeros_stay_and_count(method: PruneMethod, shares: tuple[float, float]) -> None:
    weight, limits = make_weight(16, 200), torch.tensor(shares).repeat_interleave(100)
    already = torch.rand(16, 200, generator=torch.Generator().manual_seed(2)) < limits
    weight.masked_fill_(already, -0.0)
    pruned = prune(weight, correlated(400, 200), method, 0.6)
    assert (pruned[already] == 0).all()
    assert not pruned[already].signbit().any()
    assert int((pruned == 0).sum()) == max(int(16 * 200 * 0.6), int(already.sum()))


@pytest.mark.parametrize("method", WITH_TEXT)
def test_columns_without_inputs_are_pruned_first(method: PruneMethod) -> None:
    weight, inputs = make_weight(8, 100), correlated(400, 100)
    inputs[:, ::4] = 0.0
    pruned = prune(weight, inputs, method, 0.5)
    assert (pruned[:, ::4] == 0).all()
    assert int((pruned == 0).sum()) == 8 * 50


@pytest.mark.parametrize("method", PruneMethod)
def test_a_weight_keeps_its_dtype(method: PruneMethod) -> None:
    weight, inputs = make_weight(8, 64).bfloat16(), correlated(128, 64).bfloat16()
    assert prune(weight, inputs, method, 0.5).dtype == torch.bfloat16


@pytest.mark.parametrize("method", WITH_TEXT)
@pytest.mark.parametrize(
    ("value", "message"), [(math.nan, "finite"), (math.inf, "finite"), (0.0, "no calibration token")]
)
def test_unusable_inputs_are_an_error(method: PruneMethod, value: float, message: str) -> None:
    with pytest.raises(PruneError, match=message):
        prune(make_weight(4, 8), torch.full((8, 8), value), method, 0.5)


def test_rising_sparsity_compares_all_linears_unless_something_else_determines_their_zeros() -> None:
    gradual = PruneConfig(0.5, schedule=PruneSchedule.GRADUAL)
    assert comparison(gradual) is Compare.MODEL
    assert comparison(replace(gradual, compare=Compare.ROW)) is Compare.ROW
    others: list[dict[str, Any]] = [{"pattern": Pattern(2, 4)}, {"allocation": Allocation.OWL}]
    for more in others:
        assert comparison(replace(gradual, **more)) is Compare.LAYER
    assert comparison(PruneConfig(0.5, PruneMethod.WANDA)) is Compare.ROW
