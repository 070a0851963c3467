"""Block reconstruction: errors fall, zeros stay, results repeat bit for bit, and other weights do not change."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seft.config import Allocation, Pattern, PruneConfig, PruneMethod
from seft.errors import Cancelled
from seft.models.targets import decoder_blocks, target_linears
from seft.prune.loop import prune_model
from seft.prune.mask import overfull_groups
from seft.prune.reconstruct import _Part, reconstruct
from seft.report import Phase, Progress, Reconstructed, Report
from tests.seft.architectures import ARCHITECTURES, VOCABULARY
from tests.tiny import untrained_tiny

WINDOWS = torch.randint(VOCABULARY, (6, 40), generator=torch.Generator().manual_seed(0))
CONFIG = PruneConfig(
    0.5, allocation=Allocation.UNIFORM, samples=6, tokens=40, reconstruct_epochs=3, reconstruct_learning_rate=2e-3
)


def reconstructed(model: Any, config: PruneConfig = CONFIG) -> tuple[Any, dict[str, Tensor], list[Report]]:
    """Prune and reconstruct a copy. Returns it, its weights before reconstruction, and the reports."""
    pruned, reports = copy.deepcopy(model), list[Report]()
    prune_model(pruned, WINDOWS, config)
    between = {name: parameter.detach().clone() for name, parameter in pruned.named_parameters()}
    reconstruct(pruned, model, WINDOWS, config, reports.append)
    return pruned, between, reports


@torch.no_grad()
def first_block_error(model: Any, dense: Any) -> float:
    """Return the error of the first block's output, from runs of both models."""
    outputs = []
    for each in (model, dense):
        captured: list[Tensor] = []
        hook = decoder_blocks(each)[0].register_forward_hook(
            lambda _, __, output, captured=captured: captured.append(output[0] if type(output) is tuple else output)
        )
        each(input_ids=WINDOWS, use_cache=False)
        hook.remove()
        outputs.append(captured[0])
    return float((outputs[0] - outputs[1]).square().sum() / outputs[1].square().sum())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_error_of_every_part_falls_and_zeros_stay(name: str) -> None:
    dense = ARCHITECTURES[name].model()
    before = {key: parameter.clone() for key, parameter in dense.named_parameters()}
    model, between, reports = reconstructed(dense)
    parts = [report for report in reports if isinstance(report, Reconstructed)]
    expected = {"block"} if name == "opt" else {"attention", "attn", "self_attn", "mlp"}
    assert {part.part for part in parts} <= expected
    assert len(parts) == 2 * (1 if name == "opt" else 2)
    assert all(part.after < part.before for part in parts)
    target_ids = {id(target.parameter) for target in target_linears(model).values()}
    for key, parameter in model.named_parameters():
        if id(parameter) in target_ids:
            assert torch.equal(parameter == 0, between[key] == 0)
        else:
            assert torch.equal(parameter, between[key])
        assert parameter.requires_grad
    assert all(torch.equal(parameter, before[key]) for key, parameter in dense.named_parameters())


def test_the_first_block_is_nearer_to_the_dense_one_and_so_is_the_model() -> None:
    dense = untrained_tiny()
    pruned = copy.deepcopy(dense)
    prune_model(pruned, WINDOWS, CONFIG)
    tuned, _, _ = reconstructed(dense)
    assert first_block_error(tuned, dense) < 0.9 * first_block_error(pruned, dense)
    with torch.no_grad():
        expected, far, near = (each(input_ids=WINDOWS).logits for each in (dense, pruned, tuned))
    assert (near - expected).norm() < 0.9 * (far - expected).norm()


def test_each_part_is_tuned_on_its_inputs_in_the_pruned_model() -> None:
    """Compute the reported error again, for attention of the second block on its present inputs."""
    dense = untrained_tiny()
    model, _, reports = reconstructed(dense)
    reported = next(each.after for each in reports if isinstance(each, Reconstructed) and each.block == 1)
    inputs: list[Any] = []
    attention, twin = (decoder_blocks(each)[1].get_submodule("self_attn") for each in (model, dense))
    hook = attention.register_forward_pre_hook(lambda _, args, kwargs: inputs.append((args, kwargs)), with_kwargs=True)
    with torch.no_grad():
        model(input_ids=WINDOWS, use_cache=False)
        hook.remove()
        own, expected = (each(*inputs[0][0], **inputs[0][1])[0].double() for each in (attention, twin))
    assert float((own - expected).square().sum() / expected.square().sum()) == pytest.approx(reported, rel=1e-4)


def test_two_steps_of_a_linear_are_those_of_adam_at_the_learning_rate_and_at_half_of_it() -> None:
    generator = torch.Generator().manual_seed(0)
    dense, inputs = (torch.randn(size, generator=generator) for size in ((6, 8), (5, 8)))
    pruned = dense.masked_fill(torch.rand(6, 8, generator=generator) < 0.5, 0)
    linear, twin = (nn.Linear(8, 6, bias=False) for _ in range(2))
    block = nn.Sequential(linear)
    with torch.no_grad():
        linear.weight.copy_(pruned)
        twin.weight.copy_(dense)
        part = _Part(block, nn.Sequential(twin), [lambda: block(inputs)], torch.device("cpu"), torch.device("cpu"))
        part.tune(replace(CONFIG, reconstruct_epochs=2, reconstruct_learning_rate=0.01), generator, lambda: None)
    expected, wanted, x = pruned.double(), dense.double() @ inputs.double().T, inputs.double()
    mean, square = torch.zeros_like(expected), torch.zeros_like(expected)
    for step, rate in ((1, 0.01), (2, 0.005)):
        gradient = 2 * (expected @ x.T - wanted) @ x / wanted.square().sum() * (pruned != 0)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        expected -= rate * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    torch.testing.assert_close(linear.weight.detach().double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(linear.weight == 0, pruned == 0)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    dense = untrained_tiny()
    one, same, other = (
        reconstructed(dense, replace(CONFIG, method=PruneMethod.MAGNITUDE, seed=seed))[0].state_dict()
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_a_pattern_stays_legal() -> None:
    model, _, _ = reconstructed(untrained_tiny(), replace(CONFIG, pattern=Pattern(2, 4)))
    assert not any(overfull_groups(target.weight, Pattern(2, 4)) for target in target_linears(model).values())


def test_a_part_that_gets_no_better_keeps_its_pruned_weights() -> None:
    model, between, reports = reconstructed(untrained_tiny(), replace(CONFIG, reconstruct_learning_rate=1.0))
    parts = [part for part in reports if isinstance(part, Reconstructed)]
    assert len(parts) == 2 * len(decoder_blocks(model))
    assert all(part.after == part.before for part in parts)
    assert all(torch.equal(parameter, between[name]) for name, parameter in model.named_parameters())


def test_bfloat16_is_tuned_in_steps_smaller_than_its_precision() -> None:
    dense = untrained_tiny().to(torch.bfloat16)
    _, _, reports = reconstructed(dense, replace(CONFIG, reconstruct_learning_rate=1e-4, reconstruct_epochs=5))
    parts = [part for part in reports if isinstance(part, Reconstructed)]
    assert sum(part.after for part in parts) < sum(part.before for part in parts)


def test_progress_is_reported_per_block() -> None:
    _, _, reports = reconstructed(untrained_tiny())
    progress = [report for report in reports if isinstance(report, Progress)]
    assert list(dict.fromkeys(progress)) == [Progress(Phase.RECONSTRUCTING, done, 4) for done in range(5)]


def test_it_can_be_stopped_within_a_block() -> None:
    count = 0

    def stop(_: Report) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise Cancelled

    dense = untrained_tiny()
    with pytest.raises(Cancelled):
        reconstruct(copy.deepcopy(dense), dense, WINDOWS, CONFIG, stop)
