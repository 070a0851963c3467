"""LoRA with a second pruning: equal to doing it by hand, leaves nothing of PEFT, rejects what it cannot do."""

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from seft.config import Pattern, PruneConfig, PruneMethod, RepairMethod
from seft.errors import ConfigError, DataError
from seft.loss import TokenLoss
from seft.models.targets import target_linears
from seft.prune.loop import prune_model
from seft.prune.mask import overfull_groups
from seft.repair import Repair, lora_reprune
from seft.repair.lora_reprune import LoraReprune
from seft.repair.method import Work
from seft.report import silent
from tests.seft.architectures import ARCHITECTURES
from tests.seft.repair.repairing import PRUNED, TOKENS, by_magnitude, in_pattern, nonzeros, pruned_tiny, short, weights

CONFIG = short(method=RepairMethod.LORA_REPRUNE, density=0.05)


def draw_adapters(method: LoraReprune) -> None:
    """Give the second adapter matrices, which are zero at the start, random values."""
    for tensor in (each for name, each in method.tensors().items() if name.endswith("/B.values")):
        tensor.normal_(std=0.05, generator=torch.Generator().manual_seed(0))


def test_it_equals_merging_and_pruning_by_hand() -> None:
    model = pruned_tiny()
    before, budget = weights(model), nonzeros(model)
    targets = target_linears(model)
    method = LoraReprune(Work(model, targets, CONFIG, TOKENS, PruneConfig(0.6, PruneMethod.MAGNITUDE)))
    draw_adapters(method)
    adapters = {name: tensor.clone() for name, tensor in method.tensors().items()}
    with torch.no_grad():
        method.finish(silent)
    grown = 0
    for name, weight in before.items():
        first, second = adapters[f"{name}/A.values"], adapters[f"{name}/B.values"]
        rows, cols = weight.shape
        merged = weight + 2 * second.view(rows, -1) @ first.view(-1, cols)
        bound = merged.abs().flatten().sort().values[-budget[name]]
        expected = merged.masked_fill(merged.abs() < bound, 0)
        torch.testing.assert_close(targets[name].weight, expected)
        grown += int(expected[weight == 0].count_nonzero())
    assert method.grown_zeros == grown > 0
    assert nonzeros(model) == budget


def test_groups_that_had_more_zeros_than_their_pattern_asks_for_get_no_more_nonzeros() -> None:
    pattern = Pattern(2, 4)
    model = in_pattern(pattern)
    targets = target_linears(model)
    for target in targets.values():
        target.weight.view(-1, 4)[::2, :3] = 0
    budget = nonzeros(model)
    method = LoraReprune(Work(model, targets, CONFIG, TOKENS, by_magnitude(pattern)))
    draw_adapters(method)
    with torch.no_grad():
        method.finish(silent)
    assert all(count <= budget[name] for name, count in nonzeros(model).items())
    assert not any(overfull_groups(target.weight, pattern) for target in targets.values())


def test_the_second_pruning_has_no_masks_of_the_first_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would need half as much memory as the weights in bfloat16. One bit per weight is enough."""
    model = pruned_tiny()
    targets, found = target_linears(model), list[Tensor]()
    sizes = {target.weight.shape for target in targets.values()}

    def pruned(*arguments: Any, **more: Any) -> None:
        alive = [each for each in gc.get_objects() if type(each) is Tensor]
        found.extend(each for each in alive if each.dtype is torch.bool and each.shape in sizes)
        prune_model(*arguments, **more)

    monkeypatch.setattr(lora_reprune, "prune_model", pruned)
    with torch.no_grad():
        LoraReprune(Work(model, targets, CONFIG, TOKENS, PruneConfig(0.6, PruneMethod.MAGNITUDE))).finish(silent)
    assert not found


def test_gradients_equal_those_of_a_dense_model_of_the_same_formula() -> None:
    model, twin = pruned_tiny(torch.float64), pruned_tiny(torch.float64)
    method = LoraReprune(Work(model.requires_grad_(False), target_linears(model), CONFIG, TOKENS, PRUNED))
    for tensor in (each for name, each in method.tensors().items() if name.endswith(".values")):
        tensor.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    adapters = method.tensors()
    windows = TOKENS[:64].view(2, 32)
    twins = target_linears(twin.requires_grad_(False))
    for name, target in twins.items():
        first, second = adapters[f"{name}/A.values"], adapters[f"{name}/B.values"]
        rows, cols = target.weight.shape
        target.weight.add_(2 * second.view(rows, -1).double() @ first.view(-1, cols).double())
        target.parameter.requires_grad_(True)
    TokenLoss(model)(windows).sum().backward()  # type: ignore[no-untyped-call]
    TokenLoss(twin)(windows).sum().backward()  # type: ignore[no-untyped-call]
    gradients = dict(zip((name for name in adapters if name.endswith(".values")), method.take_gradients(), strict=True))
    for name, target in twins.items():
        rows, cols = target.weight.shape
        whole = target.parameter.grad
        assert whole is not None
        first, second = (adapters[f"{name}/{half}.values"].double() for half in "AB")
        of_first = 2 * second.view(rows, -1).T @ whole
        of_second = 2 * whole @ first.view(-1, cols).T
        for half, expected in (("A", of_first), ("B", of_second)):
            gradient = gradients[f"{name}/{half}.values"].double()
            torch.testing.assert_close(gradient, expected.flatten(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_nothing_of_peft_is_left_in_the_model(name: str) -> None:
    model = ARCHITECTURES[name].model()
    before = [(key, type(module)) for key, module in model.named_modules()]
    attributes = set(vars(model))
    repair = Repair(model, TOKENS % 50, CONFIG, pruned=PruneConfig(0.5, PruneMethod.MAGNITUDE))
    repair.advance()
    repair.finish()
    assert [(key, type(module)) for key, module in model.named_modules()] == before
    assert set(vars(model)) == attributes
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_it_requires_the_pruning_settings_and_enough_text() -> None:
    with pytest.raises(ConfigError, match="pruned must be given for lora_reprune"):
        Repair(pruned_tiny(), TOKENS, CONFIG)
    with pytest.raises(DataError, match="4096 tokens, the length of a window of the pruning"):
        Repair(pruned_tiny(), TOKENS, CONFIG, pruned=PruneConfig(0.6, tokens=4096))


def test_the_windows_of_the_second_pruning_follow_from_the_seed_of_the_first() -> None:
    first, again, other = (
        Work(None, {}, CONFIG, TOKENS, replace(PRUNED, seed=seed)).calibration() for seed in (0, 0, 1)
    )
    assert first.shape == (PRUNED.samples, PRUNED.tokens)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_stacked_experts_are_rejected() -> None:
    model = ARCHITECTURES["mixtral"].model()
    with pytest.raises(ConfigError, match="method must support stacked experts"):
        Repair(model, TOKENS % 50, CONFIG, pruned=PruneConfig(0.5, PruneMethod.MAGNITUDE))
