"""The laws of a whole repair: budget, bits, resuming, cancelling, healing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from seft.config import RepairConfig
from seft.errors import Cancelled, DataError, StateError, TrainError
from seft.loss import TokenLoss
from seft.repair import Repair
from seft.report import Evolved, Progress, Report, Step
from seft.targets import target_linears
from tests.seft.repairing import TOKENS, pruned_tiny, same_bits, short, weights, zero_smallest


def repaired(config: RepairConfig, steps: int | None = None, dtype: torch.dtype = torch.float32) -> tuple[Any, Repair]:
    model = pruned_tiny(dtype)
    repair = Repair(model, TOKENS, config)
    for _ in range(config.steps if steps is None else steps):
        repair.advance()
    return model, repair


def nonzeros(model: nn.Module) -> dict[str, int]:
    return {name: int(linear.weight.count_nonzero()) for name, linear in target_linears(model).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_budget_holds_at_every_step(dtype: torch.dtype) -> None:
    model = pruned_tiny(dtype)
    budget = nonzeros(model)
    repair = Repair(model, TOKENS, short())
    for _ in range(8):
        repair.advance()
        assert all(count <= budget[name] for name, count in nonzeros(model).items())
    assert repair.grown_zeros > 0
    assert {linear.weight.dtype for linear in target_linears(model).values()} == {dtype}


def test_grown_zeros_are_counted_against_the_pruned_weights() -> None:
    model = pruned_tiny()
    before = weights(model)
    repair = Repair(model, TOKENS, short())
    repair.run()
    after = weights(model)
    assert repair.grown_zeros == sum(int(((before[name] == 0) & (after[name] != 0)).sum()) for name in before)


def test_steps_and_events_are_reported() -> None:
    reports: list[Report] = []
    Repair(pruned_tiny(), TOKENS, short()).run(reports.append)
    steps = [report for report in reports if isinstance(report, Step)]
    assert [report.step for report in steps] == list(range(1, 9))
    assert all(report.loss > 0 and report.tokens_per_second > 0 for report in steps)
    assert [report.step for report in reports if isinstance(report, Evolved)] == [1, 3, 6]
    assert [report.done for report in reports if isinstance(report, Progress)] == list(range(1, 9))
    opening = next(report for report in reports if isinstance(report, Evolved))
    assert opening.grown >= opening.dropped > opening.reactivated > 0
    assert opening.pruned == opening.reactivated


def test_same_seed_same_bits_and_another_seed_others() -> None:
    first, second, other = (weights(repaired(short(seed=seed))[0]) for seed in (0, 0, 1))
    assert same_bits(first, second)
    assert not same_bits(first, other)


def test_micro_batches_change_the_memory_and_not_the_gradient() -> None:
    whole, parts = (weights(repaired(short(micro_batch=size, settle=1.0), steps=1)[0]) for size in (3, 1))
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stopped_anywhere_and_gone_on_gives_the_bits_of_never_stopped(tmp_path: Path, dtype: torch.dtype) -> None:
    undisturbed, repair = repaired(short(), dtype=dtype)
    expected, grown = weights(undisturbed), repair.grown_zeros
    for stop in range(8):
        repaired(short(), stop, dtype)[1].save(tmp_path / str(stop))
        model = pruned_tiny(dtype)
        again = Repair(model, TOKENS, short())
        again.load(tmp_path / str(stop))
        assert again.step == stop
        again.run()
        assert same_bits(weights(model), expected)
        assert again.grown_zeros == grown


def test_a_state_is_small(tmp_path: Path) -> None:
    model, repair = repaired(short(density=0.005), 4)
    repair.save(tmp_path)
    dense = sum(linear.weight.nbytes for linear in target_linears(model).values())
    assert (tmp_path / "repair.safetensors").stat().st_size < 0.25 * dense


def test_a_foreign_state_is_refused(tmp_path: Path) -> None:
    repaired(short(), 3)[1].save(tmp_path)
    other = pruned_tiny()
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.mul_(2)
    strangers = [
        Repair(pruned_tiny(), TOKENS, short(seed=1)),
        Repair(pruned_tiny(), TOKENS[100:], short()),
        Repair(pruned_tiny(torch.bfloat16), TOKENS, short()),
        Repair(other, TOKENS, short()),
    ]
    for stranger in strangers:
        with pytest.raises(StateError, match="must have the"):
            stranger.load(tmp_path)
    with pytest.raises(StateError, match="readable"):
        Repair(pruned_tiny(), TOKENS, short()).load(tmp_path / "nothing")


def test_only_a_fresh_repair_takes_up_a_state(tmp_path: Path) -> None:
    _, repair = repaired(short(), 3)
    repair.save(tmp_path)
    with pytest.raises(StateError, match="fresh"):
        repair.load(tmp_path)


def test_a_cancel_passes_through_and_leaves_a_state_to_go_on_from(tmp_path: Path) -> None:
    def cancel(report: Report) -> None:
        if isinstance(report, Step) and report.step == 3:
            raise Cancelled

    model = pruned_tiny()
    repair = Repair(model, TOKENS, short())
    with pytest.raises(Cancelled):
        repair.run(cancel)
    assert repair.step == 3
    repair.run()
    assert same_bits(weights(model), weights(repaired(short())[0]))


def test_a_loss_that_is_not_finite_is_an_error_and_changes_nothing() -> None:
    model, repair = repaired(short(), 3)
    before = weights(model)
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.inf)
    with pytest.raises(TrainError, match="step 4"):
        repair.advance()
    assert same_bits(weights(model), before)


def test_text_shorter_than_one_window_is_refused() -> None:
    with pytest.raises(DataError, match="it has 31"):
        Repair(pruned_tiny(), TOKENS[:31], short())


def test_finish_leaves_the_model_as_it_came_but_for_its_weights() -> None:
    model, repair = repaired(short(), 4)
    windows = TOKENS[:64][None]
    trained = model(input_ids=windows).logits
    assert not any(parameter.requires_grad for parameter in model.parameters())
    repair.finish()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(model(input_ids=windows).logits, trained)


def test_repair_helps(tiny_folder: Path, tiny_texts: list[str]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokens = torch.tensor([token for text in tiny_texts[:120] for token in tokenizer(text)["input_ids"]])
    held_out, train = tokens[: 20 * 96].view(20, 96), tokens[20 * 96 :]
    zero_smallest(model, 0.7)

    def loss() -> float:
        with torch.no_grad():
            return float(TokenLoss(model)(held_out).mean())

    pruned = loss()
    size = {"batch_tokens": 768, "sequence_tokens": 96, "micro_batch": 8}
    config = short(steps=30, update_interval=10, learning_rate=1e-2, settle=0.25, **size)
    repair = Repair(model, train, config)
    repair.run()
    grown = repair.grown_zeros
    repair.finish()
    assert loss() < pruned - 0.1
    assert grown > 0
