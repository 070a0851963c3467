"""Importances from gradients of the dense model: they equal autograd's, and decide the numbers of zeros."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import Gemma4ForCausalLM, Gemma4TextConfig

from seft.config import Allocation, Compare, Pattern, PruneConfig, PruneMethod
from seft.errors import ConfigError, PruneError
from seft.models.products import intercepted_products
from seft.models.targets import Target, block_linears, decoder_blocks, target_linears
from seft.prune import backward, curvature
from seft.prune.curvature import Curvature, measure
from seft.prune.loop import prune_model
from seft.prune.mask import Rule, smallest_overall, zeros_first
from seft.prune.methods import make_pruner
from seft.prune.statistics import Batch
from seft.prune.walk import Walk
from seft.report import Phase, Progress, Report, Reporter, silent
from tests.seft.accelerator import DEVICE, Accelerator
from tests.seft.architectures import ARCHITECTURES
from tests.seft.prune.test_loop import WINDOWS
from tests.tiny import VOCABULARY, untrained_tiny

CURVATURE = PruneConfig(0.6, allocation=Allocation.CURVATURE)
CORRECTED = (PruneMethod.SPARSEGPT, PruneMethod.ALPS, PruneMethod.ADMM)


def curvatures(model: Any, windows: Tensor = WINDOWS, report: Reporter = silent) -> list[Curvature]:
    """Return the curvature of every target, in the order of `target_linears`."""
    targets = [block_linears(block) for block in decoder_blocks(model)]
    found = measure(Walk(model, model.device, report, Phase.PRUNING), targets, windows)
    return [each for of_block in found for each in of_block.values()]


def importances_by_autograd(model: Any, windows: Tensor) -> list[Tensor]:
    """Return W^2 times the mean square of the input times the sum of the squared gradients of the output."""
    targets = list(target_linears(model).values())
    inputs: dict[Target, list[Tensor]] = {target: [] for target in targets}
    outputs: dict[Target, list[Tensor]] = {target: [] for target in targets}

    def handler(target: Target) -> Callable[..., Tensor]:
        def handle(given: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
            result = product(given)
            result.retain_grad()
            inputs[target].append(given.detach().flatten(0, -2))
            outputs[target].append(result)
            return result

        return handle

    with intercepted_products({target: handler(target) for target in targets}):
        logits = model(input_ids=windows).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
    expected = []
    for target in targets:
        gradients = torch.cat([each.grad.flatten(0, -2) for each in outputs[target] if each.grad is not None])
        squares = torch.cat(inputs[target]).square().mean(0)
        expected.append(target.weight.square() * squares * gradients.square().sum(0)[:, None])
    model.zero_grad()
    return expected


def smallest_by_sorting(scores: list[Tensor], zeros: int) -> list[int]:
    """Return how many of the `zeros` smallest scores each matrix has. Of equal scores the first count."""
    order = torch.cat([score.flatten() for score in scores]).argsort(stable=True)[:zeros]
    owner = torch.cat([torch.full((score.numel(),), number) for number, score in enumerate(scores)])[order]
    return torch.bincount(owner, minlength=len(scores)).tolist()


def with_limit(score: Tensor) -> Tensor:
    """Return the scores with infinity for the weights that must not become zero: all but 99 % of a matrix."""
    allowed = smallest_overall(score, int(0.99 * score.numel())) | (score < 0)
    return score.masked_fill(~allowed, torch.inf)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_importances_equal_those_of_autograd_on_the_whole_model(name: str) -> None:
    model = ARCHITECTURES[name].model()
    expected = importances_by_autograd(copy.deepcopy(model), WINDOWS)
    forwards = [module for module in model.modules() if "forward" in vars(module)]
    for each, other in zip(curvatures(model), expected, strict=True):
        found = each.importance()
        assert torch.allclose(found[found >= 0], other[found >= 0], rtol=1e-3, atol=1e-4 * float(other.max()))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [module for module in model.modules() if "forward" in vars(module)] == forwards


def test_one_block_at_a_time_is_on_the_device_and_the_figures_are_the_same() -> None:
    model = untrained_tiny()
    block = sum(parameter.nbytes for parameter in decoder_blocks(model)[0].parameters())
    targets = [block_linears(each) for each in decoder_blocks(model)]
    with Accelerator(limit=1 << 30) as accelerator:
        found = measure(Walk(model, torch.device(DEVICE), silent, Phase.PRUNING), targets, WINDOWS[:, :8])
    assert block < accelerator.peak < 3 * block
    assert accelerator.used == 0
    expected = curvatures(untrained_tiny(), WINDOWS[:, :8])
    for each, other in zip((one for of_block in found for one in of_block.values()), expected, strict=True):
        assert torch.allclose(each.importance(), other.importance(), rtol=1e-4, atol=0)  # another kernel of attention


def test_an_expert_without_tokens_keeps_its_number_of_zeros_and_has_no_factors() -> None:
    model = ARCHITECTURES["mixtral"].model()
    for block in decoder_blocks(model):
        block.get_parameter("mlp.gate.weight").data.zero_()
    found = curvatures(model)
    targets = list(target_linears(model).values())
    unreached = [number for number, each in enumerate(found) if not each.known]
    assert unreached
    assert all(targets[number].expert and found[number].row_factors() is None for number in unreached)
    uniform = [math.prod(target.shape) // 2 for target in targets]
    counts = curvature.allocate([{str(number): each for number, each in enumerate(found)}], [uniform], lambda: None)[0]
    assert sum(counts) == sum(uniform)
    assert counts != uniform
    assert all(counts[number] == uniform[number] for number in unreached)


def test_a_linear_that_runs_without_gradients_keeps_its_number_of_zeros() -> None:
    """The sparse attention of DeepSeek V3.2 has such linears: they choose the tokens that are attended to."""
    model = untrained_tiny()
    for block in decoder_blocks(model):
        query = block.get_submodule("self_attn.q_proj")
        query.forward = torch.no_grad()(query.forward)
    prune_model(model, WINDOWS, CURVATURE)
    targets = target_linears(model)
    zeros = {name: int((target.weight == 0).sum()) for name, target in targets.items()}
    uniform = {name: int(0.6 * math.prod(target.shape)) for name, target in targets.items()}
    assert sum(zeros.values()) == sum(uniform.values())
    assert {name for name in zeros if zeros[name] == uniform[name]} == {name for name in zeros if "q_proj" in name}


@pytest.mark.parametrize("method", PruneMethod)
@pytest.mark.parametrize("sparsity", [0.05, 0.6, 0.97])
def test_the_model_has_the_zeros_of_its_least_important_weights(method: PruneMethod, sparsity: float) -> None:
    model = untrained_tiny()
    scores = [each.importance() for each in curvatures(model, WINDOWS[:5])]
    total = sum(int(score.numel() * sparsity) for score in scores)
    expected = smallest_by_sorting([with_limit(score) for score in scores], total)
    config = PruneConfig(sparsity, method, allocation=Allocation.CURVATURE, samples=5, tokens=24)
    prune_model(model, WINDOWS, config)
    zeros = [int((target.weight == 0).sum()) for target in target_linears(model).values()]
    assert sum(zeros) == total
    assert zeros == expected
    assert len({count / score.numel() for count, score in zip(zeros, scores, strict=True)}) > 2


@pytest.mark.parametrize("method", CORRECTED)
def test_factors_act_like_rows_that_are_as_many_times_as_large(method: PruneMethod) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(24, 32, generator=generator), torch.randn(200, 32, generator=generator)
    factors = 4.0 ** torch.randint(-2, 3, (24, 1), generator=generator)  # powers of two change no rounding
    results = []
    for matrix, given_factors in ((weight, factors), (weight * factors, None)):
        pruner = make_pruner(matrix, 460, PruneConfig(0.6, method), given_factors)
        pruner.observe(Batch(inputs))
        results.append(pruner.prune())
    assert torch.equal(results[0] * factors, results[1])
    assert len(set((results[0] == 0).sum(1).tolist())) > 3


def test_factors_are_roots_of_relative_gradients_and_a_zero_comes_first_also_in_a_row_without_gradients() -> None:
    weight = torch.ones(4, 3)
    weight[3, 2] = 0
    found = Curvature(Target(nn.Linear(3, 4, bias=False)))
    found.outputs = torch.tensor([4.0, 1.0, 3.0, 0.0])
    factors = found.row_factors()
    assert factors is not None
    assert factors.flatten().tolist() == pytest.approx([2**0.5, 0.5**0.5, 1.5**0.5, 0.01])
    chosen = Rule(1, Compare.LAYER, factors=factors).choose(zeros_first(weight, weight))
    assert chosen.nonzero().tolist() == [[3, 2]]


def test_factors_change_nothing_within_rows_and_groups() -> None:
    score, factors = torch.rand(6, 8, generator=torch.Generator().manual_seed(0)), torch.rand(6, 1)
    for rule in (Rule(24, Compare.ROW), Rule(24, Compare.LAYER, Pattern(2, 4))):
        weighted = Rule(rule.zeros, rule.compare, rule.pattern, factors)
        assert torch.equal(rule.choose(score), weighted.choose(score))


def test_given_numbers_of_zeros_keep_the_factors_of_the_rows() -> None:
    model, again = untrained_tiny(), untrained_tiny()
    prune_model(model, WINDOWS, CURVATURE)
    blocks = [block_linears(block) for block in decoder_blocks(model)]
    zeros = [{name: int((target.weight == 0).sum()) for name, target in block.items()} for block in blocks]
    prune_model(again, WINDOWS, CURVATURE, zeros=zeros)
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(("windows", "known"), [(1, False), (6, True)])
def test_few_tokens_in_an_expert_do_not_decide_its_zeros(windows: int, known: bool) -> None:
    model = ARCHITECTURES["mixtral"].model()
    found = curvatures(model, WINDOWS[:windows])
    targets = target_linears(model).values()
    assert any(each.known for each, target in zip(found, targets, strict=True) if target.expert) is known
    assert all(each.known for each, target in zip(found, targets, strict=True) if not target.expert)


@pytest.mark.parametrize("method", CORRECTED)
def test_zeros_of_the_model_stay_and_count(method: PruneMethod) -> None:
    model = untrained_tiny()
    prune_model(model, WINDOWS, PruneConfig(0.3, PruneMethod.MAGNITUDE))
    before = [target.weight == 0 for target in target_linears(model).values()]
    prune_model(model, WINDOWS, PruneConfig(0.6, method, allocation=Allocation.CURVATURE))
    after = [target.weight == 0 for target in target_linears(model).values()]
    assert all((new | ~old).all() for old, new in zip(before, after, strict=True))
    assert sum(int(zeros.sum()) for zeros in after) == sum(int(0.6 * zeros.numel()) for zeros in after)


@pytest.mark.parametrize("what", ["inputs", "gradients"])
def test_what_is_not_finite_is_an_error_with_the_name_of_the_linear(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = untrained_tiny()
    if what == "inputs":
        target_linears(model)["model.layers.1.mlp.gate_proj"].weight[0, 0] = torch.inf
    else:
        infinite = backward._last_gradient
        monkeypatch.setattr(backward, "_last_gradient", lambda *given: infinite(*given) * torch.inf)
    before = copy.deepcopy(model.state_dict())
    place = r"block 1, mlp\.down_proj: inputs" if what == "inputs" else r"block 3, mlp\.down_proj: gradients"
    with pytest.raises(PruneError, match=f"{place} must be finite"):
        prune_model(model, WINDOWS, CURVATURE)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_progress_rises_by_whole_blocks_through_both_passes() -> None:
    reports: list[Report] = []
    prune_model(untrained_tiny(), WINDOWS, CURVATURE, reports.append)
    done = [report.done for report in reports if isinstance(report, Progress)]
    assert {report.total for report in reports if isinstance(report, Progress)} == {8}
    assert (done[0], done[-1]) == (0, 8)
    assert done == sorted(done)
    assert set(done) == set(range(9))


def test_a_stop_during_the_gradients_leaves_a_model_that_runs() -> None:
    model, count = untrained_tiny(), 0
    expected = model(input_ids=WINDOWS).logits

    def stop(_: Report) -> None:
        nonlocal count
        count += 1
        if count == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_model(model, WINDOWS, CURVATURE, stop)
    assert torch.equal(model(input_ids=WINDOWS).logits, expected)
    assert not any("forward" in vars(module) for module in model.modules() if isinstance(module, nn.Linear))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Allocation.CURVATURE),
        ({"method": PruneMethod.ALPS}, Allocation.CURVATURE),
        ({"compare": Compare.LAYER}, Allocation.CURVATURE),
        ({"compare": Compare.ROW}, Allocation.UNIFORM),
        ({"method": PruneMethod.WANDA}, Allocation.UNIFORM),
        ({"pattern": Pattern(2, 4)}, Allocation.UNIFORM),
        ({"allocation": Allocation.UNIFORM}, Allocation.UNIFORM),
        ({"allocation": Allocation.OWL}, Allocation.OWL),
    ],
)
def test_auto_means_curvature_where_a_method_corrects_weights_and_rows_may_differ(
    changes: dict[str, Any], expected: Allocation
) -> None:
    assert PruneConfig(0.5, **changes).resolved_allocation is expected


@pytest.mark.parametrize(("samples", "tokens", "windows"), [(128, 2048, 4), (48, 512, 16), (3, 512, 3), (8, 9000, 1)])
def test_curvatures_read_a_limited_number_of_tokens(samples: int, tokens: int, windows: int) -> None:
    config = PruneConfig(0.5, samples=samples, tokens=tokens)
    assert config.curvature_windows == windows
    assert PruneConfig(0.5, PruneMethod.WANDA, samples=samples, tokens=tokens).curvature_windows == 0


def test_importance_is_the_square_of_the_weight_times_its_curvature_and_zeros_come_first() -> None:
    weight = torch.tensor([[1.0, 0.0], [-2.0, 3.0]])
    inputs, outputs = torch.tensor([1.0, 10.0]), torch.tensor([2.0, 5.0])
    assert curvature.importance(weight, inputs, outputs).tolist() == [[2.0, -1.0], [20.0, 450.0]]
    assert weight.tolist() == [[1.0, 0.0], [-2.0, 3.0]]


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    levels=st.integers(1, 40),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 999),
)
def test_the_split_over_a_model_equals_sorting_all_scores(
    sizes: list[int], levels: int, fraction: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.randint(levels, (size, 1), generator=generator).float() / 7 for size in sizes]
    for score in scores:
        score[torch.rand(score.shape, generator=generator) < 0.2] = -1
    everything = torch.cat([score.flatten() for score in scores])
    present = int((everything < 0).sum())
    zeros = present + int(fraction * (len(everything) - present))
    expected = smallest_by_sorting(scores, zeros)
    assert curvature.split_over_model([reader(score) for score in scores], zeros) == expected


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=4),
    scales=st.lists(st.sampled_from([1.0, 1e-3, 1e3]), min_size=4, max_size=4),
    present=st.sampled_from([0.0, 0.3, 0.995]),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 999),
)
def test_no_matrix_gets_more_zeros_than_the_limit(
    sizes: list[int], scales: list[float], present: float, fraction: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.rand(size, 1, generator=generator) * scale for size, scale in zip(sizes, scales, strict=False)]
    for score in scores:
        score[torch.rand(score.shape, generator=generator) < present] = -1
    limited = [with_limit(score) for score in scores]
    least, most = (sum(int(chosen(score).sum()) for score in limited) for chosen in (is_zero, torch.isfinite))
    zeros = least + int(fraction * (most - least))
    found = curvature.split_below_limit([reader(score) for score in scores], zeros)
    assert found == smallest_by_sorting(limited, zeros)


def is_zero(score: Tensor) -> Tensor:
    return score < 0


def reader(score: Tensor) -> Callable[[], Tensor]:
    return lambda: score


@pytest.mark.parametrize("shared", [0, 2])
def test_only_blocks_that_share_keys_and_values_are_refused(shared: int) -> None:
    config = Gemma4TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        global_head_dim=8,
        num_kv_shared_layers=shared,
        layer_types=["sliding_attention", "full_attention"] * 2,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCABULARY,
        sliding_window=16,
    )
    model = Gemma4ForCausalLM(config).eval()
    if not shared:
        assert len(curvatures(model)) == len(target_linears(model))
        return
    with pytest.raises(ConfigError, match="must be uniform if blocks of the model use keys and values"):
        prune_model(model, WINDOWS, CURVATURE)
