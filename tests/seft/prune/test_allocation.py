"""Allocation of zeros to blocks: as in the papers, and always the same total."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seft.config import Allocation, Compare, PruneConfig, PruneMethod, SparsityOf
from seft.errors import ConfigError, PruneError
from seft.models.targets import block_linears, decoder_blocks, target_linears
from seft.prune import alphapruning, owl
from seft.prune.allocation import apportion
from seft.prune.loop import prune_model
from seft.report import Progress, Report
from tests.seft.counting import counted
from tests.seft.prune.test_loop import WINDOWS
from tests.seft.prune.weights import correlated, make_weight
from tests.tiny import untrained_tiny


@torch.no_grad()
def uneven_tiny() -> Any:
    """Return a tiny model in which later blocks have more outliers and heavier tails."""
    model = untrained_tiny()
    generator = torch.Generator().manual_seed(5)
    for number, block in enumerate(decoder_blocks(model)):
        for target in block_linears(block).values():
            rows, cols = target.weight.shape
            outliers = torch.rand(rows, cols, generator=generator) < 0.004 * number
            target.weight[outliers] *= 10
    return model


def zeros(model: Any) -> dict[str, int]:
    return {name: int((target.weight == 0).sum()) for name, target in target_linears(model).items()}


def block_sparsities(model: Any) -> list[float]:
    """Return the fraction of zeros of each block."""
    sparsities = []
    for block in decoder_blocks(model):
        weights = [target.weight for target in block_linears(block).values()]
        sparsities.append(
            sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
        )
    return sparsities


@pytest.mark.parametrize("method", PruneMethod)
@pytest.mark.parametrize("fraction", [0.31, 0.7])
def test_all_allocations_give_the_same_number_of_zeros(method: PruneMethod, fraction: float) -> None:
    totals = set()
    for allocation in Allocation:
        model = uneven_tiny()
        prune_model(model, WINDOWS, PruneConfig(fraction, method, allocation=allocation))
        totals.add(sum(zeros(model).values()))
    shapes = [target.weight.shape for target in target_linears(untrained_tiny()).values()]
    assert totals == {sum(int(rows * cols * fraction) for rows, cols in shapes)}


@pytest.mark.parametrize("allocation", [Allocation.OWL, Allocation.ALPHAPRUNING])
def test_blocks_with_outliers_and_heavy_tails_keep_more(allocation: Allocation) -> None:
    model = uneven_tiny()
    prune_model(model, WINDOWS, PruneConfig(0.75, PruneMethod.WANDA, allocation=allocation))
    sparsities = block_sparsities(model)
    assert sparsities[0] > sparsities[-1] + 0.05
    assert sum(sparsities) / len(sparsities) == pytest.approx(0.75, abs=1e-3)


@pytest.mark.parametrize("method", [PruneMethod.RIA, PruneMethod.WANDA])
def test_uniform_gives_every_linear_the_sparsity_and_every_row_if_rows_are_asked_for(method: PruneMethod) -> None:
    exact, by_row = untrained_tiny(), untrained_tiny()
    prune_model(exact, WINDOWS, PruneConfig(0.53, method))
    prune_model(by_row, WINDOWS, PruneConfig(0.53, method, compare=Compare.ROW))
    for target in target_linears(exact).values():
        assert int((target.weight == 0).sum()) == int(target.weight.numel() * 0.53)
    for target in target_linears(by_row).values():
        assert set((target.weight == 0).sum(1).tolist()) == {int(target.weight.shape[1] * 0.53)}


def test_outliers_are_counted_over_the_whole_block() -> None:
    block = [(make_weight(8, 30, seed), correlated(50, 30, seed).norm(dim=0)) for seed in (1, 2)]
    scores = [abs(float(w[r, c])) * float(n[c]) for w, n in block for r in range(8) for c in range(30)]
    mean = math.fsum(scores) / len(scores)
    assert owl.outlier_ratio(block) == sum(score > 5 * mean for score in scores) / len(scores)


def test_owl_keeps_weights_in_proportion_to_outliers_within_its_reach_of_the_sparsity() -> None:
    ratios, mean = [0.01, 0.03, 0.02, 0.05], 0.7
    sparsities = owl.block_sparsities(ratios, mean)
    assert sum(sparsities) / 4 == pytest.approx(mean)
    assert max(sparsities) - min(sparsities) == pytest.approx(2 * 0.08)
    slopes = [(sparsities[i] - sparsities[0]) / (ratios[i] - ratios[0]) for i in (1, 2, 3)]
    assert slopes == pytest.approx([-0.16 / 0.04] * 3)
    assert owl.block_sparsities([0.02] * 3, mean) == [mean] * 3


@torch.no_grad()
def test_owl_measures_the_dense_model_on_what_each_block_receives() -> None:
    model = uneven_tiny()
    blocks = decoder_blocks(model)
    inputs: dict[Any, list[Tensor]] = {}
    hooks = [
        target.module.register_forward_hook(lambda module, args, _: inputs.setdefault(module, []).append(args[0][0]))
        for target in target_linears(model).values()
    ]
    for window in WINDOWS:
        model(input_ids=window[None])
    for hook in hooks:
        hook.remove()
    ratios = [
        owl.outlier_ratio([(t.weight, torch.cat(inputs[t.module]).norm(dim=0)) for t in block_linears(block).values()])
        for block in blocks
    ]
    prune_model(model, WINDOWS, PruneConfig(0.6, PruneMethod.MAGNITUDE, allocation=Allocation.OWL))
    assert block_sparsities(model) == pytest.approx(owl.block_sparsities(ratios, 0.6), abs=1e-3)


def hill(weight: Tensor) -> float:
    """Return PL_Alpha_Hill in double precision from the eigenvalues: 1 + k / sum of log(lambda / lambda_min)."""
    values = torch.linalg.eigvalsh(weight.double().T @ weight.double())[-min(weight.shape) :]
    logs = values.log10()
    low, high = float(logs.min()), float(logs.max())
    counts = [0] * 100
    for log in logs.tolist():
        counts[min(int((log - low) / (high - low) * 100), 99)] += 1
    peak = low + counts.index(max(counts)) * (high - low) / 100
    tail = [value for value in values.tolist() if math.log10(value) >= peak - 1e-12]
    return 1 + (len(tail) - 1) / sum(math.log(value / tail[0]) for value in tail[1:])


@pytest.mark.parametrize(("rows", "cols"), [(64, 64), (160, 64), (64, 160)])
def test_alpha_is_the_hill_estimate_from_the_peak_of_the_spectrum(rows: int, cols: int) -> None:
    assert alphapruning.alpha(make_weight(rows, cols)) == pytest.approx(hill(make_weight(rows, cols)), rel=1e-3)


def test_alpha_finds_the_exponent_of_a_power_law() -> None:
    left, _ = torch.linalg.qr(make_weight(400, 400).double())
    for exponent in (2.0, 3.0):
        # Quantiles of a density proportional to x ** -exponent for x >= 1.
        values = ((torch.arange(400, dtype=torch.float64) + 0.5) / 400) ** (-1 / (exponent - 1))
        assert alphapruning.alpha((left * values.sqrt()).float()) == pytest.approx(exponent, rel=0.15)


def test_a_matrix_without_a_tail_counts_as_the_lightest() -> None:
    assert alphapruning.alpha(torch.ones(8, 8)) == math.inf
    assert alphapruning.block_weights([2.0, 4.0, math.inf, 3.0]) == pytest.approx([0.8, 1.2, 1.2, 1.0])
    assert alphapruning.block_weights([math.inf] * 2) == [1.0, 1.0]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1, 1e6), st.integers(0, 10_000)), min_size=1, max_size=12),
    st.floats(0, 1),
)
def test_counts_sum_to_the_total_and_stay_within_their_limits(parts: list[tuple[float, int]], fraction: float) -> None:
    proportions, limits = zip(*parts, strict=True)
    total = int(sum(limits) * fraction)
    counts = apportion(proportions, limits, total)
    assert sum(counts) == total
    assert all(0 <= count <= limit for count, limit in zip(counts, limits, strict=True))


def test_counts_are_in_proportion_unless_a_limit_is_reached() -> None:
    assert apportion([1.0, 2.0, 3.0], [100] * 3, 60) == [10, 20, 30]
    assert apportion([1.0, 1.0, 1.0], [100] * 3, 10) in ([4, 3, 3], [3, 4, 3], [3, 3, 4])
    assert apportion([1.0, 9.0], [100, 50], 100) == [50, 50]
    assert apportion([1.2, 1.8], [100] * 2, 1) == [0, 1], "the larger remainder gets the missing one"


@pytest.mark.parametrize("method", [PruneMethod.MAGNITUDE, PruneMethod.WANDA])
def test_a_sparsity_of_the_whole_model_is_reached_in_the_targets(method: PruneMethod) -> None:
    model = untrained_tiny()
    prune_model(model, WINDOWS, PruneConfig(0.5, method, sparsity_of=SparsityOf.MODEL))
    counts = counted(model)
    assert counts.model.share == pytest.approx(0.5, abs=1e-3)
    assert counts.linears.share > 0.5


def test_a_sparsity_of_the_whole_model_that_targets_cannot_reach_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"sparsity must be at most 0\.\d+ for this model"):
        prune_model(untrained_tiny(), WINDOWS, PruneConfig(0.95, sparsity_of=SparsityOf.MODEL))


def test_progress_includes_the_pass_for_the_allocation() -> None:
    reports: list[Report] = []
    prune_model(untrained_tiny(), WINDOWS, PruneConfig(0.5, allocation=Allocation.OWL), reports.append)
    assert [report.done for report in reports if isinstance(report, Progress)] == list(range(9))


@pytest.mark.parametrize("allocation", [Allocation.UNIFORM, Allocation.OWL])
def test_inputs_that_are_zero_are_an_error_with_the_name_of_the_linear(allocation: Allocation) -> None:
    model = untrained_tiny()
    model.get_submodule("model.layers.1.input_layernorm").weight.data.zero_()
    with pytest.raises(PruneError, match=r"block 1, self_attn\.q_proj: inputs must not be all zero"):
        prune_model(model, WINDOWS, PruneConfig(0.5, PruneMethod.WANDA, allocation=allocation))
