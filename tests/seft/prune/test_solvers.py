"""Pruners that correct the remaining weights: equal to references in double precision, with the same Hessians."""

from typing import Any

import pytest
import torch
from torch import Tensor

from seft.config import UNSTRUCTURED, Pattern, PruneConfig, PruneMethod
from seft.errors import PruneError
from seft.prune import admm, alps, sparsegpt
from seft.prune.least_squares import add_minimum, minimiser, unit_diagonal
from seft.prune.methods import make_pruner
from seft.prune.sparsegpt import inverse_factor
from seft.prune.statistics import Batch, Gram
from tests.seft.prune.weights import WIDTH, correlated, make_weight, prune


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


def conjugate_gradients(start: Tensor, weight: Tensor, hessian: Tensor, steps: int) -> Tensor:
    """Return the weights after some steps from `start`, row by row on its support (Hestenes & Stiefel 1952)."""
    result = start.clone()
    for row, kept in enumerate(start != 0):
        matrix, best = hessian[kept][:, kept], start[row, kept]
        residual = (weight @ hessian)[row, kept] - matrix @ best
        direction = residual
        for _ in range(steps):
            length = residual @ residual / (direction @ matrix @ direction)
            best, after = best + length * direction, residual - length * (matrix @ direction)
            direction = after + (after @ after) / (residual @ residual) * direction
            residual = after
        result[row, kept] = best
    return result


@pytest.mark.parametrize(("sparsity", "pattern"), [(0.8, UNSTRUCTURED), (0.5, Pattern(2, 4))])
def test_alps_corrects_the_weights_by_exactly_three_steps_of_conjugate_gradients(
    monkeypatch: pytest.MonkeyPatch, sparsity: float, pattern: Pattern
) -> None:
    weight, inputs, started = make_weight(24, 120), correlated(1024, 120), list[Tensor]()
    hessian = 2 / 4 * inputs.double().T @ inputs.double()  # of four windows
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(120, dtype=torch.float64)
    scale = hessian.diagonal().sqrt()
    scaled, unit = weight.double() * scale, hessian / scale / scale[:, None]
    find_support = alps.find_support

    def recorded(*arguments: Any) -> Tensor:
        started.append(find_support(*arguments))
        return started[-1]

    monkeypatch.setattr(alps, "find_support", recorded)
    pruned = prune(weight, inputs, PruneMethod.ALPS, sparsity, pattern=pattern).double() * scale
    (start,) = started
    two, three, four = (
        float((pruned - conjugate_gradients(start.double(), scaled, unit, steps)).norm() / pruned.norm())
        for steps in (2, 3, 4)
    )
    assert three < 1e-5
    assert min(two, four) > 1e-4


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


@pytest.mark.parametrize(
    ("method", "module", "function"),
    [(PruneMethod.SPARSEGPT, sparsegpt, "inverse_factor"), (PruneMethod.ADMM, admm, "minimiser")],
)
def test_linears_with_the_same_inputs_need_one_factorisation(
    monkeypatch: pytest.MonkeyPatch, method: PruneMethod, module: Any, function: str
) -> None:
    weights, batch, calls = [make_weight(rows, 96) for rows in (24, 8)], Batch(correlated(512, 96)), list[Any]()
    alone = [make_pruner(weight, weight.numel() // 2, PruneConfig(0.5, method)) for weight in weights]
    for pruner in alone:
        pruner.observe(Batch(correlated(512, 96)))
    expected = [pruner.prune() for pruner in alone]
    compute = getattr(module, function)

    def counted(*arguments: Any) -> Tensor:
        calls.append(arguments)
        result: Tensor = compute(*arguments)
        return result

    monkeypatch.setattr(module, function, counted)
    together = [make_pruner(weight, weight.numel() // 2, PruneConfig(0.5, method)) for weight in weights]
    for pruner in together:
        pruner.observe(batch)
    assert all(map(torch.equal, (pruner.prune() for pruner in together), expected))
    assert len(calls) == 1


def test_a_hessian_without_factor_is_damped_more_and_then_rejected() -> None:
    hessian = torch.eye(10)
    hessian[0, 0] = -0.05
    assert torch.equal(inverse_factor(hessian, 0.01), inverse_factor(hessian, 0.1))
    hessian[0, 0] = -0.5
    assert torch.equal(inverse_factor(hessian, 0.01), inverse_factor(hessian, 1.0))
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
