"""Each pruner on one linear: equal to its paper's formula in double precision, exact in its counts."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor, nn

from seft.config import PruneConfig, PruneMethod
from seft.errors import PruneError
from seft.prune.loop import PRUNERS
from seft.prune.sparsegpt import inverse_factor

WIDTH = 128  # columns that SparseGPT chooses a mask for at once


def make_linear(rows: int, cols: int, seed: int = 0) -> nn.Linear:
    linear = nn.Linear(cols, rows, bias=False)
    linear.weight.data = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    return linear


def correlated(tokens: int, cols: int, seed: int = 1) -> Float[Tensor, "tokens cols"]:
    """Inputs whose columns depend on one another and differ in size, as activations do."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(cols, cols, generator=generator) / math.sqrt(cols)
    sizes = torch.randn(cols, generator=generator).exp()
    return (
        torch.randn(tokens, cols, generator=generator) @ mixing + torch.randn(tokens, 1, generator=generator)
    ) * sizes


def prune(linear: nn.Linear, inputs: Float[Tensor, "tokens cols"], method: PruneMethod, sparsity: float) -> Tensor:
    pruner = PRUNERS[method](linear, PruneConfig(sparsity, method))
    for window in inputs.chunk(4):
        pruner.see(window[None])
    return pruner.pruned()


def asked_zeros(rows: int, cols: int, method: PruneMethod, sparsity: float) -> int:
    match method:
        case PruneMethod.MAGNITUDE:
            return int(rows * cols * sparsity)
        case PruneMethod.WANDA:
            return rows * int(cols * sparsity)
        case PruneMethod.SPARSEGPT:
            return sum(int(rows * min(WIDTH, cols - start) * sparsity) for start in range(0, cols, WIDTH))


def obs(weight: Tensor, inputs: Tensor, sparsity: float, damping: float, windows: int) -> Tensor:
    """SparseGPT from the formula (section 3.2): optimal brain surgeon, the inverse made anew for every column."""
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
            threshold = score.flatten().sort().values[int(score.numel() * sparsity)]
            mask[:, column : column + WIDTH] = score < threshold
        share = weight[:, column] * mask[:, column] / inverses[column][0, 0]
        weight[:, column:] -= share[:, None] * inverses[column][0]
    return weight.masked_fill(mask, 0.0)


def test_magnitude_zeroes_the_smallest_of_the_linear() -> None:
    linear = make_linear(7, 9)
    weight = linear.weight.detach()
    threshold = weight.abs().flatten().sort().values[int(63 * 0.6)]
    expected = torch.where(weight.abs() < threshold, 0.0, weight)
    assert torch.equal(prune(linear, torch.ones(4, 9), PruneMethod.MAGNITUDE, 0.6), expected)


def test_wanda_zeroes_the_smallest_of_each_row_by_weight_times_input_norm() -> None:
    linear, inputs = make_linear(6, 20), correlated(64, 20)
    weight = linear.weight.detach()
    expected = weight.clone()
    for row in range(6):
        scores = [abs(weight[row, col].item()) * math.hypot(*inputs[:, col].tolist()) for col in range(20)]
        for col in sorted(range(20), key=scores.__getitem__)[: int(20 * 0.55)]:
            expected[row, col] = 0.0
    assert torch.equal(prune(linear, inputs, PruneMethod.WANDA, 0.55), expected)


def test_sparsegpt_equals_optimal_brain_surgery_in_double_precision() -> None:
    linear, inputs = make_linear(24, 300), correlated(1024, 300)
    pruned = prune(linear, inputs, PruneMethod.SPARSEGPT, 0.6)
    expected = obs(linear.weight.detach(), inputs, 0.6, damping=0.01, windows=4)
    assert torch.equal(pruned == 0, expected == 0)
    torch.testing.assert_close(pruned.double(), expected, rtol=1e-3, atol=1e-4)


def test_the_better_a_pruner_knows_the_inputs_the_smaller_its_error() -> None:
    linear, inputs = make_linear(32, 256), correlated(2048, 256)
    errors = {
        method: (inputs @ (linear.weight.detach() - prune(linear, inputs, method, 0.6)).T).norm().item()
        for method in PruneMethod
    }
    assert errors[PruneMethod.SPARSEGPT] < 0.8 * errors[PruneMethod.WANDA]
    assert errors[PruneMethod.WANDA] < 0.8 * errors[PruneMethod.MAGNITUDE]


@pytest.mark.parametrize("method", PruneMethod)
@given(rows=st.integers(1, 9), cols=st.integers(1, 150), sparsity=st.floats(0, 0.99))
def test_as_many_weights_are_zero_as_were_asked_for(method: PruneMethod, rows: int, cols: int, sparsity: float) -> None:
    pruned = prune(make_linear(rows, cols), correlated(64, cols), method, sparsity)
    assert int((pruned == 0).sum()) == asked_zeros(rows, cols, method, sparsity)
    if method is PruneMethod.WANDA:
        assert set((pruned == 0).sum(1).tolist()) == {int(cols * sparsity)}


@pytest.mark.parametrize("method", PruneMethod)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_zeros_that_were_there_stay_and_count(method: PruneMethod, share: float) -> None:
    linear = make_linear(16, 200)
    already = torch.rand(16, 200, generator=torch.Generator().manual_seed(2)) < share
    linear.weight.data.masked_fill_(already, -0.0)
    pruned = prune(linear, correlated(400, 200), method, 0.6)
    assert (pruned[already] == 0).all()
    assert not pruned[already].signbit().any()
    expected = asked_zeros(16, 200, method, 0.6) if share < 0.6 else int(already.sum())
    assert int((pruned == 0).sum()) == expected


@pytest.mark.parametrize("method", [PruneMethod.WANDA, PruneMethod.SPARSEGPT])
def test_columns_that_no_input_reaches_go_first(method: PruneMethod) -> None:
    linear, inputs = make_linear(8, 100), correlated(400, 100)
    inputs[:, ::4] = 0.0
    pruned = prune(linear, inputs, method, 0.5)
    assert (pruned[:, ::4] == 0).all()
    assert int((pruned == 0).sum()) == 8 * 50


@pytest.mark.parametrize("method", PruneMethod)
def test_a_weight_keeps_its_dtype(method: PruneMethod) -> None:
    linear, inputs = make_linear(8, 64).bfloat16(), correlated(128, 64).bfloat16()
    assert prune(linear, inputs, method, 0.5).dtype == torch.bfloat16


@pytest.mark.parametrize("method", [PruneMethod.WANDA, PruneMethod.SPARSEGPT])
@pytest.mark.parametrize(("value", "told"), [(math.nan, "finite"), (math.inf, "finite"), (0.0, "no calibration token")])
def test_inputs_that_say_nothing_are_an_error(method: PruneMethod, value: float, told: str) -> None:
    with pytest.raises(PruneError, match=told):
        prune(make_linear(4, 8), torch.full((8, 8), value), method, 0.5)


def test_a_hessian_without_factor_is_damped_more_and_then_refused_never_replaced() -> None:
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
