"""Training of norms and biases with every method: gradients, optimizer, bits, resuming, the best state, clipping."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import OlmoConfig, OlmoForCausalLM

from seft.config import RepairConfig, RepairMethod
from seft.errors import ConfigError
from seft.loss import TokenLoss
from seft.models.targets import norms_and_biases, target_linears
from seft.repair import Repair
from seft.repair.method import Work
from seft.repair.methods import make_method
from seft.repair.norms_and_biases import TrainedVector
from tests.seft.architectures import ARCHITECTURES
from tests.seft.architectures import VOCABULARY as OTHER_VOCABULARY
from tests.seft.repair.repairing import (
    PRUNED,
    TOKENS,
    assert_resumes,
    pruned_tiny,
    repaired,
    same_bits,
    short,
    weights,
    zero_smallest,
)

every = pytest.mark.parametrize("method", RepairMethod)
WINDOWS = torch.randint(OTHER_VOCABULARY, (4, 40), generator=torch.Generator().manual_seed(0))


def on(**changes: object) -> RepairConfig:
    return short(norms_and_biases=True, learning_rate=1e-2, **changes)


def vectors(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all norms and biases."""
    return {name: each.detach().clone() for name, each in norms_and_biases(model).items()}


def everything(model: nn.Module) -> dict[str, Tensor]:
    return {**weights(model), **vectors(model)}


def test_norms_and_biases_are_all_parameters_without_a_matrix() -> None:
    assert {name.split(".", 3)[-1] for name in vectors(ARCHITECTURES["gpt_oss"].model()) if ".layers.0." in name} == {
        *(f"self_attn.{part}" for part in ("sinks", "q_proj.bias", "k_proj.bias", "v_proj.bias", "o_proj.bias")),
        *(f"mlp.{part}" for part in ("router.bias", "experts.gate_up_proj_bias", "experts.down_proj_bias")),
        *("input_layernorm.weight", "post_attention_layernorm.weight"),
    }
    assert {name for name in vectors(ARCHITECTURES["gpt2"].model()) if ".h." not in name} == {
        "transformer.ln_f.weight",
        "transformer.ln_f.bias",
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("method", [RepairMethod.SEFT, RepairMethod.MASKED_LORA])
def test_gradients_are_those_of_the_plain_model(name: str, method: RepairMethod) -> None:
    model = ARCHITECTURES[name].model().double().requires_grad_(False)
    zero_smallest(model)
    twin: Any = copy.deepcopy(model)
    twin.set_experts_implementation("eager")  # the others do not support float64
    work = Work(model, target_linears(model), on(method=method, density=0.05), TOKENS, None)
    trained = make_method(work)
    TokenLoss(model)(WINDOWS).sum().backward()  # type: ignore[no-untyped-call]
    expected = norms_and_biases(twin)
    for parameter in expected.values():
        parameter.requires_grad_(True)
    TokenLoss(twin)(WINDOWS).sum().backward()  # type: ignore[no-untyped-call]
    gradients = trained.take_gradients()[-len(expected) :]
    for (key, parameter), gradient in zip(expected.items(), gradients, strict=True):
        assert parameter.grad is not None, key
        torch.testing.assert_close(gradient.view_as(parameter), parameter.grad, atol=1e-9, rtol=1e-7)


def test_gradients_of_an_adapted_linear_are_those_of_the_plain_model() -> None:
    model = ARCHITECTURES["qwen2"].model().double().requires_grad_(False)
    twin = copy.deepcopy(model)
    config = on(method=RepairMethod.LORA_REPRUNE, density=0.2)
    trained = make_method(Work(model, target_linears(model), config, TOKENS, PRUNED))
    TokenLoss(model)(WINDOWS).sum().backward()  # type: ignore[no-untyped-call]
    expected = norms_and_biases(twin)
    for parameter in expected.values():
        parameter.requires_grad_(True)
    TokenLoss(twin)(WINDOWS).sum().backward()  # type: ignore[no-untyped-call]
    gradients = trained.take_gradients()[-len(expected) :]
    for parameter, gradient in zip(expected.values(), gradients, strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_vector_is_trained_by_adamw_whose_decay_pulls_it_to_its_initial_values(dtype: torch.dtype) -> None:
    parameter = nn.Parameter((1 + torch.arange(4) / 8).to(dtype))
    initial = parameter.detach().double().clone()
    reference = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    adam = torch.optim.AdamW([reference], lr=1e-3, weight_decay=0.5)
    vector = TrainedVector(parameter)
    for seed in range(20):
        gradient = torch.randn(2, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)
        for part in gradient:
            (parameter * part).sum().backward()
        vector.update(vector.take_gradient(), 1e-3, 0.5)
        reference.grad = gradient.double().sum(0)
        adam.step()
    torch.testing.assert_close(vector.change.values.double(), reference.detach(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(parameter.detach(), (initial + reference.detach()).to(dtype))
    assert parameter.grad is None


@pytest.mark.parametrize("trains", [False, True])
def test_parameters_that_were_frozen_before_are_frozen_after_it(trains: bool) -> None:
    model = pruned_tiny().requires_grad_(trains)
    repair = Repair(model, TOKENS, on(density=0.05))
    repair.run()
    repair.finish()
    assert {parameter.requires_grad for parameter in model.parameters()} == {trains}


def test_a_model_without_them_is_rejected() -> None:
    small = {"vocab_size": 384, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    model = OlmoForCausalLM(OlmoConfig(**small, num_attention_heads=4))
    with pytest.raises(ConfigError, match="norms_and_biases must be off"):
        Repair(model, TOKENS, on())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any("forward" in vars(module) for module in model.modules())
    Repair(model, TOKENS, short())


@pytest.mark.parametrize(
    ("method", "dtype"),
    [*((method, torch.bfloat16) for method in RepairMethod), (RepairMethod.SEFT, torch.float32)],
)
def test_a_resumed_run_gives_the_bits_of_an_uninterrupted_one(
    tmp_path: Path, method: RepairMethod, dtype: torch.dtype
) -> None:
    config = on(method=method)
    model, _ = assert_resumes(lambda: repaired(config, 0, dtype), tmp_path)
    before, after = everything(pruned_tiny(dtype)), everything(model)
    assert not any(torch.equal(before[name], after[name]) for name in vectors(model))


@every
def test_without_the_option_they_are_unchanged_and_with_it_they_are_counted(method: RepairMethod) -> None:
    model, repair = repaired(short(method=method), 2)
    repair.finish()
    assert same_bits(vectors(model), vectors(pruned_tiny()))
    trained = repaired(on(method=method), 0)[1].trained_values
    assert trained == repair.trained_values + sum(each.numel() for each in vectors(model).values())


@every
def test_the_best_state_has_the_norms_of_its_step(method: RepairMethod) -> None:
    losses = {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.5}
    model = pruned_tiny()
    config = on(method=method, evaluate_interval=2)
    repair = Repair(model, TOKENS, config, pruned=PRUNED, held_out_loss=lambda: losses[repair.step])
    repair.run()
    repair.finish()
    expected, other = repaired(on(method=method), 4)
    other.finish()
    assert same_bits(everything(model), everything(expected))


def test_clipping_covers_them() -> None:
    _, repair = repaired(on(method=RepairMethod.SPP, clip_norm=1e-3), 1)
    means = [tensor for name, tensor in repair._method.tensors().items() if name.endswith("/means")]
    assert len(means) == len(target_linears(pruned_tiny())) + len(vectors(pruned_tiny()))
    assert float(torch.cat(means).norm()) == pytest.approx(0.1 * 1e-3, rel=1e-4)


def test_gradients_of_micro_batches_are_summed_in_float32() -> None:
    parameter = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    vector = TrainedVector(parameter)
    for _ in range(1000):
        parameter.sum().backward()  # type: ignore[no-untyped-call]
    assert vector.take_gradient().tolist() == [1000]
    assert vector.take_gradient().tolist() == [0]
    vector.release()
    parameter.sum().backward()  # type: ignore[no-untyped-call]
    assert vector.take_gradient().tolist() == [0]
