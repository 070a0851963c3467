"""Invariants of every repair method: budget, mask, pattern, number of values, bits, resuming, lower loss."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from seft.config import UNSTRUCTURED, Pattern, RepairConfig, RepairMethod, Variant
from seft.errors import ConfigError, TrainError
from seft.loss import TokenLoss
from seft.models.targets import decoder_blocks, hidden_state, target_linears
from seft.prune.mask import overfull_groups
from seft.repair import Repair
from seft.repair.methods import METHODS
from seft.report import Evaluated, Evolved, Step
from tests.seft.repair.repairing import (
    PRUNED,
    TOKENS,
    assert_resumes,
    by_magnitude,
    in_pattern,
    logits,
    nonzeros,
    pruned_tiny,
    repaired,
    same_bits,
    short,
    weights,
    zero_in_groups,
    zero_smallest,
)

every = pytest.mark.parametrize("method", RepairMethod)
every_variant = pytest.mark.parametrize(
    ("method", "variant"),
    [*((method, Variant.IMPROVED) for method in RepairMethod), (RepairMethod.SEFT, Variant.PUBLISHED)],
)

RATES = {
    RepairMethod.SEFT: 3e-2,
    RepairMethod.FIXED_MASK: 1e-2,
    RepairMethod.MASKED_FULL: 1e-3,
    RepairMethod.MASKED_LORA: 3e-2,
    RepairMethod.SPP: 1e-1,
    RepairMethod.LORA_REPRUNE: 3e-2,
}
"""Learning rates that suit the tiny model."""


def test_every_method_is_registered() -> None:
    assert METHODS.keys() == set(RepairMethod)


@every_variant
def test_activations_that_are_computed_again_change_no_bit(method: RepairMethod, variant: Variant) -> None:
    config = short(method=method, variant=variant, learning_rate=RATES[method], norms_and_biases=True)
    (model, first), (other, second) = (
        repaired(replace(config, activation_checkpointing=again), steps=4) for again in (False, True)
    )
    first.finish()
    second.finish()
    assert same_bits(weights(model), weights(other))
    assert all("forward" not in vars(block) for block in decoder_blocks(other))


@pytest.mark.parametrize("changes", [{}, {"density": "all"}], ids=str)
@pytest.mark.parametrize(("again", "expected"), [(False, 1), (True, 2)])
def test_every_block_is_computed_twice_in_a_micro_batch_if_its_activations_are_computed_again(
    changes: dict[str, object], again: bool, expected: int
) -> None:
    config = short(activation_checkpointing=again, **changes)
    model, repair = repaired(config, 0)
    runs = [0 for _ in decoder_blocks(model)]

    def count(number: int) -> None:
        runs[number] += 1

    for number, block in enumerate(decoder_blocks(model)):
        block.get_submodule("self_attn").register_forward_hook(lambda *_, number=number: count(number))
    repair.advance()
    assert config.micro_batches == 2
    assert runs == [2 * expected] * len(runs)


@contextmanager
def infinite_gradient(model: Any) -> Iterator[None]:
    """Make the gradient of the last block's output infinite, and leave its output as it is."""

    def break_gradient(_: object, __: object, output: Any) -> None:
        hidden: Any = hidden_state(output)
        hidden.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))

    hook = decoder_blocks(model)[-1].register_forward_hook(break_gradient)
    try:
        yield
    finally:
        hook.remove()


@every
def test_a_gradient_that_is_not_finite_is_an_error_and_changes_nothing_although_the_loss_is_finite(
    method: RepairMethod,
) -> None:
    model, repair = repaired(short(method=method), 1)
    before, predicted = weights(model), logits(model)
    with infinite_gradient(model), pytest.raises(TrainError, match=r"step 2 has loss \d.* and gradient norm (inf|nan)"):
        repair.advance()
    assert repair.step == 1
    assert same_bits(weights(model), before)
    assert torch.equal(logits(model), predicted)


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_a_gradient_that_is_not_finite_is_an_error_if_all_nonzeros_are_trained(micro_batch: int) -> None:
    model, repair = repaired(short(density="all", micro_batch=micro_batch), 1)
    with infinite_gradient(model), pytest.raises(TrainError, match=r"step 2 has loss \d.* and gradient norm (inf|nan)"):
        repair.advance()


@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_budget_holds_at_every_step(method: RepairMethod, variant: Variant, dtype: torch.dtype) -> None:
    model = pruned_tiny(dtype)
    budget, zeros = nonzeros(model), {name: weight == 0 for name, weight in weights(model).items()}
    targets = target_linears(model)
    repair = Repair(model, TOKENS, short(method=method, variant=variant), pruned=PRUNED)

    def require_budget() -> None:
        assert all(int(target.weight.count_nonzero()) <= budget[name] for name, target in targets.items())

    for _ in range(8):
        repair.advance()
        require_budget()
    trained = logits(model)
    repair.finish()
    require_budget()
    if method is not RepairMethod.LORA_REPRUNE:
        assert torch.equal(logits(model), trained)
    moved = sum(int(targets[name].weight[zeros[name]].count_nonzero()) for name in targets)
    assert repair.grown_zeros == moved
    assert (moved > 0) is not method.keeps_zeros
    assert {target.weight.dtype for target in targets.values()} == {dtype}


@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(3, 8)], ids=str)
def test_seft_keeps_groups_legal_at_every_step_moves_zeros_if_improved_and_resumes_at_any_step(
    tmp_path: Path, pattern: Pattern, variant: Variant
) -> None:
    config, budget = short(variant=variant), nonzeros(in_pattern(pattern))

    def start() -> tuple[Any, Repair]:
        model = in_pattern(pattern)

        class Checked(Repair):
            def advance(self) -> list[Step | Evolved | Evaluated]:
                reports = super().advance()
                assert not any(overfull_groups(weight, pattern) for weight in weights(model).values())
                assert all(count <= budget[name] for name, count in nonzeros(model).items())
                return reports

        return model, Checked(model, TOKENS, config, pruned=by_magnitude(pattern))

    model, repair = assert_resumes(start, tmp_path)
    before, after = weights(in_pattern(pattern)), weights(model)
    assert repair.grown_zeros == sum(int(after[name][before[name] == 0].count_nonzero()) for name in before)
    assert (repair.grown_zeros > 0) is (variant is Variant.IMPROVED)


def test_a_pattern_that_the_weights_do_not_follow_is_rejected() -> None:
    with pytest.raises(ConfigError, match="pattern must be one that the weights follow; it is '2:4'"):
        Repair(pruned_tiny(), TOKENS, short(), pruned=by_magnitude(Pattern(2, 4)))


@every
def test_every_method_keeps_a_pattern_and_its_zeros_if_it_says_so(method: RepairMethod) -> None:
    model = in_pattern(Pattern(2, 4))
    before = weights(model)
    repair = Repair(model, TOKENS, short(method=method, learning_rate=0.1), pruned=by_magnitude(Pattern(2, 4)))
    repair.run()
    repair.finish()
    after = weights(model)
    assert not any(overfull_groups(weight, Pattern(2, 4)) for weight in after.values())
    assert any(after[name][before[name] == 0].any() for name in before) is not method.keeps_zeros
    assert any((after[name] != before[name]).any() for name in before)


@every
def test_the_density_sets_the_number_of_trained_values(method: RepairMethod) -> None:
    model = pruned_tiny()
    sizes = [target.weight.numel() for target in target_linears(model).values()]
    trained = Repair(model, TOKENS, short(method=method, density=0.02), pruned=PRUNED).trained_values
    match method:
        case RepairMethod.MASKED_FULL:
            assert trained == sum(nonzeros(model).values())
        case RepairMethod.SEFT | RepairMethod.FIXED_MASK:
            assert trained == sum(round(0.02 * size) for size in sizes)
        case _:
            one_rank_of_the_largest = 64 + 160
            assert abs(trained - 0.02 * sum(sizes)) <= one_rank_of_the_largest / 2


def outcome(config: RepairConfig, steps: int | None = None) -> dict[str, Tensor]:
    model, repair = repaired(config, steps)
    repair.finish()
    return weights(model)


@every
def test_gradients_are_clipped_to_their_total_norm_and_smaller_ones_are_unchanged(
    monkeypatch: pytest.MonkeyPatch, method: RepairMethod
) -> None:
    """Compare the gradients that the method receives with the gradients in the first step of an unclipped run."""

    def first_gradients(clip_norm: float | None) -> list[Tensor]:
        received: list[Tensor] = []
        kind = METHODS[method]

        class Recording(kind):  # type: ignore[misc,valid-type]
            def update(self, gradients: Sequence[Tensor], rate: float, scale: float) -> None:
                received.extend(gradient.clone() for gradient in gradients)
                super().update(gradients, rate, scale)

        monkeypatch.setitem(METHODS, method, Recording)
        repaired(short(method=method, clip_norm=clip_norm), 1)
        monkeypatch.setitem(METHODS, method, kind)
        return received

    free = first_gradients(None)
    norm = float(torch.cat(free).norm())
    assert norm > 0
    for clipped, gradient in zip(first_gradients(norm / 3), free, strict=True):
        torch.testing.assert_close(clipped, gradient / 3)
    assert all(map(torch.equal, first_gradients(norm * 1.01), free))


def test_an_open_window_records_the_clipping_of_a_step() -> None:
    _, repair = repaired(short(steps=8, update_interval=4, clip_norm=1e-3), 3)
    scales = [tensor for name, tensor in repair._method.tensors().items() if name.endswith("/scales")]
    assert len(scales) == len(target_linears(pruned_tiny()))
    assert all(len(each) == 1 and 0 < float(each) < 1 for each in scales)


@pytest.mark.parametrize("method", [each for each in RepairMethod if each is not RepairMethod.MASKED_FULL])
def test_another_seed_gives_other_weights(method: RepairMethod) -> None:
    first, second = (outcome(short(method=method, seed=seed), steps=2) for seed in (0, 1))
    assert not same_bits(first, second)


@pytest.mark.parametrize(
    ("method", "variant", "dtype"),
    [
        *((method, Variant.IMPROVED, torch.float32) for method in RepairMethod),
        *((RepairMethod.SEFT, Variant.PUBLISHED, dtype) for dtype in (torch.float32, torch.bfloat16)),
    ],
)
def test_a_resumed_run_gives_the_bits_of_an_uninterrupted_one(
    tmp_path: Path, method: RepairMethod, variant: Variant, dtype: torch.dtype
) -> None:
    """The improved methods are resumed in bfloat16 by the test of norms and biases."""
    config = short(method=method, variant=variant)
    assert_resumes(lambda: repaired(config, 0, dtype), tmp_path)


@every
@pytest.mark.parametrize("pattern", [UNSTRUCTURED, Pattern(1, 4)], ids=str)
def test_repair_helps(tiny_folder: Path, tiny_texts: list[str], method: RepairMethod, pattern: Pattern) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokens = torch.tensor([token for text in tiny_texts[:120] for token in tokenizer(text)["input_ids"]])
    held_out, train = tokens[: 20 * 96].view(20, 96), tokens[20 * 96 :]
    if pattern.grouped:
        zero_in_groups(model, pattern)
    else:
        zero_smallest(model, 0.7)

    def loss() -> float:
        with torch.no_grad():
            return float(TokenLoss(model)(held_out).mean())

    pruned, budget = loss(), nonzeros(model)
    size = {"batch_tokens": 768, "sequence_tokens": 96, "micro_batch": 8}
    config = short(method=method, steps=30, update_interval=10, learning_rate=RATES[method], settle=0.25, **size)
    repair = Repair(model, train, config, pruned=by_magnitude(pattern))
    repair.run()
    repair.finish()
    assert loss() < pruned - 0.05
    assert (repair.grown_zeros > 0) is not method.keeps_zeros
    assert all(count <= budget[name] for name, count in nonzeros(model).items())
    assert not any(overfull_groups(weight, pattern) for weight in weights(model).values())


def test_a_repair_hides_the_warning_about_sparse_matrices_and_no_other_one() -> None:
    torch.set_warn_always(True)  # otherwise this warning comes once in a process
    try:
        with warnings.catch_warnings(record=True) as seen:
            filters = list(warnings.filters)
            Repair(pruned_tiny(torch.float64), TOKENS, short(method=RepairMethod.FIXED_MASK)).advance()
            assert warnings.filters == filters
    finally:
        torch.set_warn_always(False)
    assert not [warning for warning in seen if "Sparse CSR" in str(warning.message)]
