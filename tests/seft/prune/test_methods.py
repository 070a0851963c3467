"""Each pruner on one weight: equal to its paper's formula in double precision, with exact numbers of zeros."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from seft.config import UNSTRUCTURED, Compare, Pattern, PruneConfig, PruneMethod
from seft.errors import PruneError
from seft.prune import alps
from seft.prune.allocation import uniform_zeros
from seft.prune.least_squares import add_minimum, minimiser, unit_diagonal
from seft.prune.mask import smallest_per_row
from seft.prune.methods import make_pruner
from seft.prune.sparsegpt import inverse_factor
from seft.prune.statistics import Batch, Gram

WITH_TEXT = [method for method in PruneMethod if PruneConfig(0.5, method).text_users]
BY_ROW = [method for method in PruneMethod if method is not PruneMethod.SPARSEGPT]
"""The methods that can compare the weights of a row."""
WIDTH = 128  # columns per mask in SparseGPT


def make_weight(rows: int, cols: int, seed: int = 0) -> Float[Tensor, "rows cols"]:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def correlated(tokens: int, cols: int, seed: int = 1) -> Float[Tensor, "tokens cols"]:
    """Return inputs with correlated columns of different sizes, like activations."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(cols, cols, generator=generator) / math.sqrt(cols)
    sizes = torch.randn(cols, generator=generator).exp()
    return (
        torch.randn(tokens, cols, generator=generator) @ mixing + torch.randn(tokens, 1, generator=generator)
    ) * sizes


def prune(
    weight: Float[Tensor, "rows cols"],
    inputs: Float[Tensor, "tokens cols"],
    method: PruneMethod,
    sparsity: float,
    **more: Any,
) -> Tensor:
    config = PruneConfig(sparsity, method, **more)
    pruner = make_pruner(weight, uniform_zeros(weight.shape, sparsity, config), config)
    for window in inputs.chunk(4):
        pruner.observe(Batch(window[None]))
    return pruner.prune()


def obs(weight: Tensor, inputs: Tensor, sparsity: float, damping: float, windows: int) -> Tensor:
    """Prune by SparseGPT's formula (section 3.2): optimal brain surgeon, with a new inverse for every column."""
    weight, inputs = weight.double(), inputs.double()
    hessian = 2 / windows * inputs.T @ inputs
    hessian += damping * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    cols = weight.shape[1]
    inverses = [torch.linalg.inv(hessian[column:, column:]) for column in range(cols)]
    mask = torch.zeros_like(weight, dtype=torch.bool)
    for column in range(cols):
        if column % WIDTH == 0:
            block = range(column, min(column + WIDTH, cols))
            score = torch.stack([weight[:, c] ** 2 / inverses[c][0, 0] for c in block], dim=1)
            # Each block gets its part of the zeros, so that their total is exact.
            ends = [int(weight.numel() * sparsity) * end // cols for end in (block.start, block.stop)]
            threshold = score.flatten().sort().values[ends[1] - ends[0]]
            mask[:, column : column + WIDTH] = score < threshold
        error = weight[:, column] * mask[:, column] / inverses[column][0, 0]
        weight[:, column:] -= error[:, None] * inverses[column][0]
    return weight.masked_fill(mask, 0.0)


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


def projected(candidate: Tensor, zeros: int, group: int) -> Tensor:
    """Return the candidate with the `zeros` smallest entries of every group of `group` neighbours set to zero."""
    sizes = candidate.abs().reshape(-1, group)
    threshold = sizes.sort(1).values[:, zeros, None]
    return candidate.masked_fill((sizes < threshold).view_as(candidate), 0.0)


def alps_support(weight: Tensor, hessian: Tensor, zeros: int, group: int, *, published: bool) -> Tensor:
    """Return the support that ALPS finds, by algorithm 1 and appendix B, for a Hessian with a diagonal of ones.

    The penalty grows and the iterations stop as in the published code, or as in ours. Every group of `group` neighbours
    gets `zeros` zeros.
    """
    rho, every = (0.1, 3) if published else (alps.FIRST_PENALTY, alps.CHECK_EVERY)
    eye = torch.eye(len(hessian), dtype=torch.float64)
    kept, dual = projected(weight, zeros, group), torch.zeros_like(weight)
    support = kept != 0
    for iteration in range(1, 301):
        free = torch.linalg.solve(hessian + rho * eye, (weight @ hessian - dual + rho * kept).T).T
        kept = projected(free + dual / rho, zeros, group)
        dual = dual + rho * (free - kept)
        if iteration % every == 0:
            changed, support = float((support ^ (kept != 0)).sum() / support.sum()), kept != 0
            if published:
                if changed == 0 or (iteration > 30 and changed < 0.0003):
                    break
                rho *= 1.3 if changed > 0.1 else 1.2 if changed > 0.005 else 1.1
            else:
                if changed < alps.SETTLED:
                    break
                rho *= alps.GROWTH
    return support


def least_squares(weight: Tensor, hessian: Tensor, support: Tensor) -> Tensor:
    """Return the best weights on a support, solved row by row."""
    best, target = torch.zeros_like(weight), weight @ hessian
    for row, kept in enumerate(support):
        best[row, kept] = torch.linalg.solve(hessian[kept][:, kept], target[row, kept])
    return best


@pytest.mark.parametrize(("sparsity", "pattern"), [(0.6, UNSTRUCTURED), (0.8, UNSTRUCTURED), (0.5, Pattern(2, 4))])
def test_alps_is_as_good_as_its_published_iterations_with_exact_least_squares_in_double_precision(
    sparsity: float, pattern: Pattern
) -> None:
    weight, inputs = make_weight(24, 120), correlated(1024, 120)
    hessian = inputs.double().T @ inputs.double()
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(120, dtype=torch.float64)
    scale = hessian.diagonal().sqrt()
    scaled, unit = weight.double() * scale, hessian / scale / scale[:, None]
    group = pattern.of if pattern.grouped else weight.numel()
    ours, published = (
        alps_support(scaled, unit, int(group * sparsity), group, published=published) for published in (False, True)
    )
    expected = least_squares(weight.double(), hessian, published)
    pruned = prune(weight, inputs, PruneMethod.ALPS, sparsity, pattern=pattern).double()

    def error(candidate: Tensor) -> float:
        return float((((candidate - weight) @ hessian) * (candidate - weight)).sum())

    assert ((pruned != 0) == ours).double().mean() > 0.99
    assert error(pruned) < 1.02 * error(expected)
    assert error(pruned) < 1.02 * error(least_squares(weight.double(), hessian, pruned != 0))


def admm_reference(weight: Tensor, hessian: Tensor, zeros: int, group: int) -> Tensor:
    """Return the result of 20 iterations of gradual ADMM as in the published code of Boža 2024, without more solving.

    `hessian` is scaled and damped. Every group of `group` neighbours gets `zeros` zeros.
    """
    inverse = torch.linalg.inv(hessian + torch.eye(len(hessian), dtype=torch.float64))
    dense, dual = weight, torch.zeros_like(weight)
    for iteration in range(20):
        if iteration < 15:
            share = 1 - (1 - (iteration + 1) / 15) ** 3
            now = round(share * zeros) if group < weight.numel() else int(share * zeros)
            mask = projected(dense + dual, now, group) != 0
        kept = (dense + dual) * mask
        dual = dual + dense - kept
        dense = (weight @ hessian + kept - dual) @ inverse
    return (dense + dual) * mask


@pytest.mark.parametrize(("sparsity", "pattern"), [(0.6, UNSTRUCTURED), (0.8, UNSTRUCTURED), (0.5, Pattern(2, 4))])
def test_admm_finds_the_support_of_the_published_iterations_and_the_best_values_on_it(
    sparsity: float, pattern: Pattern
) -> None:
    weight, inputs = make_weight(24, 120), correlated(1024, 120)
    hessian = inputs.double().T @ inputs.double()
    scale = hessian.diagonal().sqrt()
    unit = hessian / scale / scale[:, None] + 0.1 * torch.eye(120, dtype=torch.float64)
    scaled, group = weight.double() * scale, pattern.of if pattern.grouped else weight.numel()
    reference = admm_reference(scaled, unit, int(group * sparsity), group)
    pruned = prune(weight, inputs, PruneMethod.ADMM, sparsity, pattern=pattern).double() * scale

    def error(candidate: Tensor) -> float:
        return float((((candidate - scaled) @ unit) * (candidate - scaled)).sum())

    assert ((pruned != 0) == (reference != 0)).double().mean() > 0.995
    assert error(pruned) < error(reference)
    assert error(pruned) < 1.001 * error(least_squares(scaled, unit, pruned != 0))


@pytest.mark.parametrize(("method", "most_changed"), [(PruneMethod.ADMM, 0.01), (PruneMethod.ALPS, 0.05)])
@pytest.mark.parametrize(("sparsity", "pattern"), [(0.6, UNSTRUCTURED), (0.5, Pattern(2, 4))])
def test_products_of_admm_in_bfloat16_are_as_good_as_in_float32(
    method: PruneMethod, most_changed: float, sparsity: float, pattern: Pattern
) -> None:
    weight, inputs = make_weight(96, 256).bfloat16(), correlated(2048, 256)
    narrow = prune(weight, inputs, method, sparsity, pattern=pattern).float()
    wide = prune(weight.float(), inputs, method, sparsity, pattern=pattern).bfloat16().float()
    changed = ((narrow != 0) != (wide != 0)).double().mean()
    assert 0 < changed < most_changed
    errors = [(inputs @ (weight.float() - each).T).norm().item() for each in (narrow, wide)]
    assert errors[0] < 1.005 * errors[1]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_the_minimum_is_where_the_gradient_of_error_and_penalty_is_zero(dtype: torch.dtype, tolerance: float) -> None:
    weight, near, total = (make_weight(24, 96, seed) for seed in range(3))
    hessian = unit_diagonal(correlated(512, 96).T @ correlated(512, 96))[0]
    minimum = add_minimum(total.clone(), weight, near.clone(), minimiser(hessian, 0.3, dtype)) - total
    gradient = (minimum - weight).double() @ hessian.double() + 0.3 * (minimum - near).double()
    assert gradient.norm() < tolerance * ((near - weight) @ hessian).norm()


def test_sparsegpt_equals_optimal_brain_surgery_in_double_precision() -> None:
    weight, inputs = make_weight(24, 300), correlated(1024, 300)
    pruned = prune(weight, inputs, PruneMethod.SPARSEGPT, 0.6)
    expected = obs(weight, inputs, 0.6, damping=0.01, windows=4)
    assert torch.equal(pruned == 0, expected == 0)
    torch.testing.assert_close(pruned.double(), expected, rtol=1e-3, atol=1e-4)


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
def test_rows_with_one_zero_more_are_those_where_it_costs_least(
    rows: int, cols: int, fraction: float, seed: int
) -> None:
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


def test_a_hessian_without_factor_is_damped_more_and_then_rejected() -> None:
    hessian = torch.eye(10)
    hessian[0, 0] = -0.05
    assert torch.equal(inverse_factor(hessian, 0.01), inverse_factor(hessian, 0.1))
    hessian[0, 0] = -5.0
    with pytest.raises(PruneError, match=r"none at damping 0\.01"):
        inverse_factor(hessian, 0.01)


def test_the_factor_is_that_of_the_damped_inverse() -> None:
    inputs = correlated(100, 20)
    hessian = inputs.T @ inputs
    factor = inverse_factor(hessian, 0.05).double()
    damped = hessian.double() + 0.05 * hessian.diagonal().mean() * torch.eye(20)
    torch.testing.assert_close(factor.T @ factor, torch.linalg.inv(damped), rtol=1e-3, atol=1e-7)
    assert torch.equal(factor, factor.triu())


def test_a_batch_is_not_shared_with_other_or_changed_inputs() -> None:
    inputs = correlated(8, 4)
    batch = Batch(inputs)
    assert batch.contains(inputs)
    assert not batch.contains(inputs.clone())
    inputs += 1
    assert not batch.contains(inputs)


def test_linears_that_observed_the_same_batches_have_one_hessian_in_common() -> None:
    windows = correlated(24, 6).chunk(4)
    one, other, third = Gram(), Gram(), Gram()
    for number, window in enumerate(windows):
        batch = Batch(window)
        for gram in (one, other, third) if number < 2 else (one, other):
            gram.observe(batch)
    third.observe(Batch(windows[2]))
    assert one.hessian() is other.hessian()
    assert one.derived(torch.clone) is other.derived(torch.clone) is not third.derived(torch.clone)
    for gram, count in ((one, 4), (third, 3)):
        inputs = torch.cat(windows[:count])
        torch.testing.assert_close(gram.hessian(), 2 / count * inputs.T @ inputs)
