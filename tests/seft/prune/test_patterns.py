"""N:M patterns and comparison groups: kept by every pruner, chosen as in the papers, contradictions rejected."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seft.config import UNSTRUCTURED, Allocation, Compare, Pattern, PruneConfig, PruneMethod, Refinement, SparsityOf
from seft.errors import ConfigError
from seft.models.targets import target_linears
from seft.prune.loop import prune_model
from seft.prune.mask import Rule, smallest_overall, smallest_per_row
from tests.seft.prune.test_loop import WINDOWS
from tests.seft.prune.weights import correlated, make_weight, prune
from tests.tiny import untrained_tiny

PATTERNS = [Pattern(2, 4), Pattern(4, 8), Pattern(1, 3)]


def legal(weight: Tensor, pattern: Pattern) -> bool:
    return bool(((weight != 0).view(-1, pattern.of).sum(1) <= pattern.kept).all())


@pytest.mark.parametrize("refine", Refinement)
@pytest.mark.parametrize("method", PruneMethod)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_every_group_is_full_and_legal(pattern: Pattern, method: PruneMethod, refine: Refinement) -> None:
    weight, inputs = make_weight(16, 264), correlated(600, 264)
    pruned = prune(weight, inputs, method, pattern.sparsity(None), pattern=pattern, refine=refine)
    assert set((pruned != 0).view(-1, pattern.of).sum(1).tolist()) == {pattern.kept}


@pytest.mark.parametrize("method", PruneMethod)
def test_existing_zeros_stay_in_a_pattern_too(method: PruneMethod) -> None:
    weight, inputs = make_weight(16, 160), correlated(400, 160)
    already = torch.rand(16, 160, generator=torch.Generator().manual_seed(2)) < 0.4
    weight.masked_fill_(already, 0.0)
    pruned = prune(weight, inputs, method, 0.5, pattern=Pattern(2, 4))
    assert (pruned[already] == 0).all()
    assert legal(pruned, Pattern(2, 4))
    assert torch.equal((pruned != 0).view(-1, 4).sum(1), (weight != 0).view(-1, 4).sum(1).clamp(max=2))


def test_wanda_keeps_the_best_two_of_every_four() -> None:
    weight, inputs = make_weight(5, 24), correlated(64, 24)
    pruned = prune(weight, inputs, PruneMethod.WANDA, 0.5, pattern=Pattern(2, 4))
    scores = weight.double().abs() * inputs.double().norm(dim=0)
    for row in range(5):
        for start in range(0, 24, 4):
            best = sorted(range(start, start + 4), key=lambda col: -scores[row, col])[:2]
            assert {start + int(col) for col in pruned[row, start : start + 4].nonzero()} == set(best)


def test_sparsegpt_chooses_each_group_on_weights_corrected_by_the_groups_before() -> None:
    weight, inputs = make_weight(12, 160), correlated(800, 160)
    pruned = prune(weight, inputs, PruneMethod.SPARSEGPT, 0.5, pattern=Pattern(2, 4))
    left, hessian = weight.double(), inputs.double().T @ inputs.double()
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(160, dtype=torch.float64)
    inverses = [torch.linalg.inv(hessian[column:, column:]) for column in range(160)]
    for column in range(160):
        if column % 4 == 0:
            score = torch.stack([left[:, c] ** 2 / inverses[c][0, 0] for c in range(column, column + 4)], dim=1)
            pruned_here = torch.zeros(12, 4, dtype=torch.bool).scatter_(1, score.argsort(1)[:, :2], value=True)
        error = left[:, column] * pruned_here[:, column % 4] / inverses[column][0, 0]
        left[:, column:] -= error[:, None] * inverses[column][0]
        left[pruned_here[:, column % 4], column] = 0.0
    assert torch.equal(pruned == 0, left == 0)
    torch.testing.assert_close(pruned.double(), left, rtol=1e-3, atol=1e-4)


def test_the_pruners_have_the_same_order_of_errors_in_a_pattern() -> None:
    weight, inputs = make_weight(32, 256), correlated(2048, 256)
    for best in (PruneMethod.ALPS, PruneMethod.ADMM):
        errors = [
            (inputs @ (weight - prune(weight, inputs, method, 0.5, pattern=Pattern(2, 4))).T).norm().item()
            for method in (best, PruneMethod.SPARSEGPT, PruneMethod.WANDA, PruneMethod.MAGNITUDE)
        ]
        assert errors == sorted(errors)


@pytest.mark.parametrize("method", [method for method in PruneMethod if method is not PruneMethod.SPARSEGPT])
def test_rows_have_equal_numbers_of_zeros_only_if_rows_are_compared(method: PruneMethod) -> None:
    weight, inputs = make_weight(16, 90), correlated(400, 90)
    weight[:8] *= 3
    by_row = (prune(weight, inputs, method, 0.55, compare=Compare.ROW) == 0).sum(1)
    by_layer = (prune(weight, inputs, method, 0.55, compare=Compare.LAYER) == 0).sum(1)
    assert by_row.tolist() == [int(90 * 0.55)] * 16
    assert by_layer.sum() == int(16 * 90 * 0.55)
    assert by_layer.max() - by_layer.min() > 1


@settings(deadline=None)
@given(kept=st.integers(1, 9998), more=st.integers(1, 9998))
def test_a_pattern_can_be_parsed_from_its_name(kept: int, more: int) -> None:
    if kept + more < 10_000:
        pattern = Pattern(kept, kept + more)
        assert Pattern.parse(str(pattern)) == pattern
    assert Pattern.parse(str(UNSTRUCTURED)) == UNSTRUCTURED


@pytest.mark.parametrize("text", ["", "4:2", "2:2", "0:4", "2:4:8", "2/4", "-1:4", "two:four", "2:40000", "2:4\n"])
def test_a_text_that_is_no_pattern_is_rejected(text: str) -> None:
    with pytest.raises(ConfigError, match="pattern must be unstructured, or N:M"):
        Pattern.parse(text)


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("sparsity", {"sparsity": 0.6}),
        ("compare", {"method": PruneMethod.WANDA, "compare": Compare.ROW}),
        ("allocation", {"allocation": Allocation.OWL}),
        ("sparsity_of", {"sparsity_of": SparsityOf.MODEL}),
    ],
)
def test_a_setting_that_contradicts_a_pattern_is_rejected(field: str, more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"{field} must be .* the pattern 2:4") as error:
        PruneConfig(**{"sparsity": 0.5, "pattern": Pattern(2, 4), **more})
    assert error.value.field == field


def test_sparsegpt_accepts_only_its_own_comparison() -> None:
    with pytest.raises(ConfigError, match="compare must be auto for sparsegpt"):
        PruneConfig(0.5, PruneMethod.SPARSEGPT, compare=Compare.ROW)


@given(zeros=st.integers(0, 1000), fraction=st.floats(0, 1))
def test_a_partial_rule_sets_the_fraction_of_the_zeros(zeros: int, fraction: float) -> None:
    rule = Rule(zeros, Compare.LAYER)
    assert rule.partial(1.0) == rule
    assert zeros * fraction - 1 < rule.partial(fraction).zeros <= zeros * fraction


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@given(fraction=st.floats(0, 1))
def test_a_partial_rule_keeps_more_in_each_group(pattern: Pattern, fraction: float) -> None:
    rule = Rule(0, Compare.LAYER, pattern)
    assert rule.partial(1.0) == rule
    score = torch.arange(2.0 * pattern.of)[None]
    zeros = rule.partial(fraction).choose(score).view(-1, pattern.of).sum(1)
    assert (zeros - fraction * (pattern.of - pattern.kept)).abs().max() <= 0.5 + 1e-6


def test_a_pattern_sets_the_sparsity() -> None:
    assert Pattern(1, 4).sparsity(None) == 0.75
    assert UNSTRUCTURED.sparsity(0.3) == 0.3
    with pytest.raises(ConfigError, match="sparsity must be given"):
        UNSTRUCTURED.sparsity(None)


@pytest.mark.parametrize("method", PruneMethod)
def test_every_group_of_a_pruned_model_is_legal(method: PruneMethod) -> None:
    model, pattern = untrained_tiny(), Pattern(2, 4)
    prune_model(model, WINDOWS, PruneConfig(0.5, method, pattern))
    assert all(legal(target.weight, pattern) for target in target_linears(model).values())


def test_a_pattern_that_does_not_divide_the_inputs_is_rejected_before_anything_is_pruned() -> None:
    model = untrained_tiny()
    with pytest.raises(ConfigError, match=r"such as the 64 of block 0, self_attn\.q_proj"):
        prune_model(model, WINDOWS, PruneConfig(1 - 1 / 3, PruneMethod.WANDA, Pattern(1, 3)))
    assert all((target.weight != 0).all() for target in target_linears(model).values())


@settings(deadline=None)
@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 0.5, 2.0]), min_size=1, max_size=30), st.floats(0, 1))
def test_the_first_of_equal_scores_are_pruned(scores: list[float], fraction: float) -> None:
    count = int(len(scores) * fraction)
    first = sorted(range(len(scores)), key=scores.__getitem__)[:count]
    assert smallest_overall(torch.tensor([scores]), count).nonzero()[:, 1].tolist() == sorted(first)
    assert smallest_per_row(torch.tensor([scores]), count).nonzero()[:, 1].tolist() == sorted(first)
