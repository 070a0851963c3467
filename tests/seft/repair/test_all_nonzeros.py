"""Laws of `density: all`: zeros against the schedule at every step, equal bits, undone events, swaps."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from seft.config import (
    Allocation,
    Compare,
    Pattern,
    PruneConfig,
    PruneMethod,
    PruneSchedule,
    RepairConfig,
    RepairMethod,
)
from seft.errors import ConfigError, TrainError
from seft.models.targets import Target, target_linears
from seft.prune.mask import overfull_groups
from seft.repair import Repair, all_nonzeros, rise, swaps
from seft.repair.nonzeros import NonzeroLinear, Plan
from seft.report import Evaluated, Evolved
from tests.seft.architectures import ARCHITECTURES
from tests.seft.repair.repairing import (
    PRUNED,
    TOKENS,
    Allocated,
    assert_nonzeros_are_counted,
    assert_resumes,
    by_magnitude,
    in_pattern,
    nonzeros,
    pruned_tiny,
    same_bits,
    short,
    sparse_linear,
    weights,
    zero_smallest,
)
from tests.tiny import untrained_tiny

GRADUAL = PruneConfig(0.6, schedule=PruneSchedule.GRADUAL)
BY_LAYER = replace(GRADUAL, compare=Compare.LAYER)
PAIRS = Pattern(2, 4)
Start = Callable[[], Any]


def config(**changes: object) -> RepairConfig:
    """Return a configuration of eight steps whose rise has events after steps 2, 4 and 5."""
    return short(density="all", **{"micro_batch": 3, **changes})


CASES: dict[str, tuple[Start, PruneConfig, RepairConfig]] = {
    "one_shot": (pruned_tiny, PRUNED, config()),
    "micro_batches": (pruned_tiny, PRUNED, config(micro_batch=2)),
    "gradual": (untrained_tiny, BY_LAYER, config()),
    "gradual-row": (untrained_tiny, replace(GRADUAL, compare=Compare.ROW), config()),
    "gradual-model": (untrained_tiny, GRADUAL, config(micro_batch=1)),
    "gradual-groups": (untrained_tiny, replace(GRADUAL, sparsity=0.5, pattern=PAIRS), config()),
    "gradual-from-sparse": (pruned_tiny, replace(BY_LAYER, sparsity=0.8), config()),
    "swaps": (pruned_tiny, PRUNED, config(swap_tokens=192)),
    "swaps-groups": (lambda: in_pattern(PAIRS), by_magnitude(PAIRS), config(swap_tokens=192, micro_batch=1)),
    "norms_and_biases": (untrained_tiny, BY_LAYER, config(norms_and_biases=True)),
    "gradual-swaps": (untrained_tiny, BY_LAYER, config(swap_tokens=96, micro_batch=1)),
    "gradual-row-swaps": (
        untrained_tiny,
        replace(GRADUAL, compare=Compare.ROW),
        config(swap_tokens=96, micro_batch=1),
    ),
    "gradual-row-from-sparse": (pruned_tiny, replace(GRADUAL, sparsity=0.8, compare=Compare.ROW), config()),
}
every = pytest.mark.parametrize("name", CASES)


@pytest.fixture(autouse=True)
def many_swaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an event swap more than a fraction of a percent, because the linears are small, and let every check pass."""
    monkeypatch.setattr(swaps, "MAX_SWAPPED_FRACTION", 0.1)
    monkeypatch.setattr("seft.repair.loop._mean_loss", lambda *_: 1.0)


def started(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Repair]:
    start, pruned, settings = CASES[name]
    model = start().to(dtype)
    return model, Repair(model, TOKENS, settings, pruned=pruned)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_zeros_follow_the_schedule_at_every_step(name: str, dtype: torch.dtype) -> None:
    _, pruned, settings = CASES[name]
    model, repair = started(name, dtype)
    sizes = {key: target.weight.numel() for key, target in target_linears(model).items()}
    first = {key: sizes[key] - count for key, count in nonzeros(model).items()}
    swapped, at_end_of_pruning = 0, weights(model)
    for step in range(1, settings.steps + 1):
        events = [report for report in repair.advance() if isinstance(report, Evolved)]
        swapped += sum(event.grown for event in events)
        zeros = {key: sizes[key] - count for key, count in nonzeros(model).items()}
        assert_nonzeros_are_counted(repair)
        assert all(event.sparsity == pytest.approx(sum(zeros.values()) / sum(sizes.values())) for event in events)
        if not pruned.gradual:
            assert zeros == first
            continue
        if step == pruned.rise_end(settings.steps):
            at_end_of_pruning = weights(model)
        past = max((each for each in range(step + 1) if rise.is_event(pruned, settings.steps, each)), default=0)
        progress = past / pruned.rise_end(settings.steps)
        asked = {key: int(size * pruned.sparsity) for key, size in sizes.items()}
        if pruned.compares_model:
            expected = rise.zeros_at(sum(first.values()), sum(asked.values()), progress)
            assert sum(zeros.values()) == expected
        elif pruned.compare is Compare.ROW:
            assert sum(zeros.values()) <= rise.zeros_at(sum(first.values()), sum(asked.values()), progress)
        else:
            assert zeros == {key: rise.zeros_at(first[key], asked[key], progress) for key in sizes}
    assert not any(overfull_groups(weight, pruned.pattern) for weight in weights(model).values())
    assert (swapped > 0) is (settings.swap_tokens > 0)
    before = weights(model)
    repair.finish()
    assert same_bits(before, weights(model))
    assert repair.grown_zeros == sum(
        int(before[key][was == 0].count_nonzero()) for key, was in at_end_of_pruning.items()
    )
    assert (repair.grown_zeros > 0) is (settings.swap_tokens > 0)


@every
def test_activations_that_are_computed_again_change_no_bit(name: str) -> None:
    start, pruned, settings = CASES[name]
    models = []
    for again in (False, True):
        models.append(model := start())
        repair = Repair(model, TOKENS, replace(settings, activation_checkpointing=again), pruned=pruned)
        repair.run()
        repair.finish()
    assert same_bits(*map(weights, models))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.bfloat16) for name in CASES),
        *((name, torch.float32) for name in ("one_shot", "gradual", "gradual-swaps")),
    ],
)
def test_a_resumed_run_gives_the_bits_of_an_uninterrupted_one(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    assert_resumes(lambda: started(name, dtype), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_a_step_in_the_backward_pass_has_the_bits_of_one_at_the_end(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    at_once, collected = (ARCHITECTURES[name].model().to(dtype) for _ in range(2))
    for model in (at_once, collected):
        model.set_experts_implementation("eager")
        zero_smallest(model.float())
        model.to(dtype)
    Repair(at_once, TOKENS, config()).run()
    plan = Plan
    monkeypatch.setattr(all_nonzeros, "Plan", lambda step, _, collects: plan(step, None, collects))
    Repair(collected, TOKENS, config()).run()
    assert same_bits(weights(at_once), weights(collected))


@pytest.mark.parametrize("compare", [Compare.LAYER, Compare.MODEL])
def test_an_expert_without_tokens_is_pruned_by_magnitude(compare: Compare) -> None:
    model: Any = ARCHITECTURES["mixtral"].model()
    model.set_experts_implementation("eager")
    for block in model.model.layers:
        with torch.no_grad():
            block.mlp.gate.weight[0] = -100 * block.mlp.gate.weight[1:].abs().sum(0)
    before = weights(model)
    forced = torch.zeros_like(TOKENS)
    repair = Repair(model, forced, config(), pruned=replace(GRADUAL, compare=compare))
    repair.run()
    unseen = {name: linear for name, linear in repair._method.linears.items() if not linear.observed}  # type: ignore[attr-defined]
    assert unseen
    for name, linear in unseen.items():
        pruned = linear.weight == 0
        assert int(pruned.sum()) == int(0.6 * pruned.numel())
        assert before[name][pruned].abs().max() <= before[name][~pruned].abs().min()


def test_no_linear_gets_more_zeros_than_allowed_if_all_are_compared() -> None:
    model = untrained_tiny()
    target = next(iter(target_linears(model).values()))
    with torch.no_grad():
        target.weight.mul_(1e-6)
    Repair(model, TOKENS, config(), pruned=replace(GRADUAL, compare=Compare.MODEL)).run()
    assert int((target.weight == 0).sum()) == int(0.99 * target.weight.numel())


def test_a_linear_without_nonzeros_does_not_change_the_zeros_of_the_model() -> None:
    model = untrained_tiny()
    targets = target_linears(model)
    dead = next(iter(targets.values()))
    with torch.no_grad():
        dead.weight.zero_()
    Repair(model, TOKENS, config(), pruned=replace(GRADUAL, compare=Compare.MODEL)).run()
    zeros, sizes = sum(int((each.weight == 0).sum()) for each in targets.values()), [*map(size, targets.values())]
    assert zeros == sum(int(0.6 * each) for each in sizes) - int(0.6 * size(dead)) + size(dead)


def size(target: Target) -> int:
    return target.weight.numel()


def test_the_importance_of_an_expert_is_that_of_its_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    right, left = torch.randn(4096, 32, generator=generator), torch.randn(4096, 24, generator=generator)
    importances, exact = [], []
    for tokens in (4096, 1024, 64):
        linear = sparse_linear(24, 32, 0.5).requires_grad_(False)
        owner = NonzeroLinear(Target(linear), 0, "a", watch=True)
        owner.plan = Plan(1, 0.0)
        owner.gradient(left[:tokens], right[:tokens])
        owner.update_curvature()
        batch_tokens = owner.tokens * 4096 / tokens
        importances.append(owner.importance(batch_tokens).clamp(min=0).sum())
        exact.append((linear.weight.square() * (left[:tokens].square().t() @ right[:tokens].square())).sum())
    for importance, squares in zip(importances, exact, strict=True):
        assert importance / importances[0] == pytest.approx(float(squares / exact[0]), rel=0.05)


def test_training_that_ends_early_raises_the_sparsity_at_once() -> None:
    model, repair = started("gradual")
    with pytest.raises(TrainError, match="must rise before the end; no step was taken"):
        repair.finish()
    repair.advance()
    repair.finish()
    sizes = {key: target.weight.numel() for key, target in target_linears(model).items()}
    assert {key: sizes[key] - count for key, count in nonzeros(model).items()} == {
        key: int(size * 0.6) for key, size in sizes.items()
    }


def test_no_state_from_before_the_end_of_the_rise_is_the_best() -> None:
    losses = iter([1.0, 2.0, 3.0, 4.0])
    model = untrained_tiny()
    repair = Repair(model, TOKENS, config(evaluate_interval=1), pruned=GRADUAL, held_out_loss=lambda: next(losses))
    judged: list[int] = []
    repair.run(lambda report: judged.append(report.step) if isinstance(report, Evaluated) else None)
    assert judged == [5, 6, 7, 8]
    assert repair.kept_step == 5


@every
def test_a_repair_is_freed_when_nobody_uses_it(name: str) -> None:
    _, repair = started(name)
    repair.advance()
    repair.finish()
    freed = weakref.ref(repair)
    gc.disable()
    try:
        del repair
        assert freed() is None  # A reference cycle would keep the moments until the next garbage collection.
    finally:
        gc.enable()


def test_an_event_that_makes_the_held_out_loss_worse_is_undone_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(event: Callable[..., bool]) -> tuple[list[Evolved], list[dict[str, torch.Tensor]]]:
        losses = iter(range(100))
        monkeypatch.setattr("seft.repair.loop._mean_loss", lambda *_: float(next(losses)))
        monkeypatch.setattr(swaps, "is_event", event)
        model, repair = started("swaps", torch.bfloat16)
        events, seen = [], []
        for _ in range(8):
            events += [report for report in repair.advance() if isinstance(report, Evolved)]
            seen.append(weights(model))
        return events, seen

    undone, with_events = run(swaps.is_event)
    none, without = run(lambda *_: False)
    assert len(undone) > 1
    assert not none
    assert all(event.undone and event.grown for event in undone)
    assert all(map(same_bits, with_events, without))


def test_the_gradients_of_zeros_are_counted_since_the_last_swap() -> None:
    _, repair = started("swaps")
    counts, since = set[int](), 0
    for _ in range(7):
        swapped = any(isinstance(report, Evolved) for report in repair.advance())
        counts.add(since := 0 if swapped else since + 1)
        assert repair._method.tensors()["observed"].tolist() == [since, since]
    assert counts == {0, 1}


def test_a_linear_without_tokens_has_as_many_gradients_as_one_with_tokens_after_a_weight_became_zero() -> None:
    linear = sparse_linear(6, 8, 0.5).requires_grad_(False)
    owner = NonzeroLinear(Target(linear), 0, "a")
    linear.weight[tuple(linear.weight.nonzero()[0])] = 0  # as a step may do that is as large as the weight
    without = owner.take_gradient()
    owner.gradient(torch.randn(4, 6), torch.randn(4, 8))
    assert without.shape == owner.take_gradient().shape


def test_no_gradient_of_the_size_of_the_weight_outlives_the_backward_pass() -> None:
    linear = sparse_linear(64, 96, 0.6).requires_grad_(False)
    owner = NonzeroLinear(Target(linear), 0, "a", watch=True)
    owner.plan = Plan(1, 1e-3)
    inputs = torch.randn(10, 96)
    with Allocated() as allocated:
        owner.product(inputs, linear).square().sum().backward()  # type: ignore[no-untyped-call]
    assert allocated.elements <= 64 * 96
    kept = sum(tensor.numel() for tensor in owner.tensors().values()) - owner.trained_values - 64 * 96 // 8
    assert kept < 6 * (64 + 96)


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    model, repair = started("one_shot")
    repair.advance()
    before = weights(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[TOKENS] = torch.nan
    with pytest.raises(TrainError, match="must be finite"):
        repair.advance()
    assert same_bits(before, weights(model))


@pytest.mark.parametrize("windows", [1, 2])
def test_a_linear_that_runs_twice_needs_a_step_of_several_micro_batches(windows: int) -> None:
    def advance(batch_tokens: int, micro_batch: int) -> None:
        model = pruned_tiny()
        mlp = model.model.layers[0].mlp
        forward = mlp.forward
        mlp.forward = lambda inputs: forward(forward(inputs))
        Repair(model, TOKENS, config(batch_tokens=batch_tokens, micro_batch=micro_batch)).advance()

    with pytest.raises(TrainError, match="Set batch_tokens to more than micro_batch times sequence_tokens"):
        advance(32 * windows, windows)
    advance(64, 1)


@pytest.mark.parametrize(
    ("make", "field", "rule"),
    [
        (lambda: config(method=RepairMethod.SPP), "density", "must be a number with the method spp"),
        (lambda: config(clip_norm=1.0), "clip_norm", "must be left out with density all"),
        (lambda: config(weight_decay=0.1), "weight_decay", "must be 0 with density all"),
        (lambda: short(swap_tokens=100), "swap_tokens", "must be 0 if density is a number"),
        (lambda: replace(GRADUAL, method=PruneMethod.WANDA), "method", "must be left out with the schedule gradual"),
        (lambda: replace(GRADUAL, reconstruct_epochs=1), "reconstruct_epochs", "must be left out with the schedule"),
        (lambda: PruneConfig(0.6, compare=Compare.MODEL), "compare", "must not be model with the schedule one_shot"),
        (
            lambda: PruneConfig(0.5, pattern=PAIRS, schedule=PruneSchedule.GRADUAL, compare=Compare.MODEL),
            "compare",
            "must be auto with the pattern 2:4",
        ),
        (
            lambda: replace(GRADUAL, compare=Compare.MODEL, allocation=Allocation.OWL),
            "allocation",
            "must be uniform if compare is model",
        ),
        (
            lambda: Repair(pruned_tiny(), TOKENS, config(swap_tokens=8 * 96), pruned=PRUNED),
            "swap_tokens",
            "must be small enough for a swap after step 0 and not later than step 7",
        ),
        (
            lambda: Repair(untrained_tiny(), TOKENS, config(swap_tokens=5 * 96), pruned=GRADUAL),
            "swap_tokens",
            "must be small enough for a swap after step 5 and not later than step 7",
        ),
        (
            lambda: Repair(untrained_tiny(), TOKENS, short(), pruned=GRADUAL),
            "density",
            "must be all with the schedule gradual",
        ),
        (
            lambda: Repair(untrained_tiny(), TOKENS, config(steps=1), pruned=GRADUAL),
            "rise",
            "must cover at least one of the 1 steps",
        ),
        (
            lambda: Repair(pruned_tiny(), TOKENS[:128], config(swap_tokens=96), pruned=PRUNED),
            "swap_tokens",
            "must be 0 if the text has only 4 windows",
        ),
    ],
)
def test_settings_that_contradict_are_rejected(make: Callable[[], object], field: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule) as error:
        make()
    assert error.value.field == field
