"""The chunked loss equals the plain loss in value and gradient, and never holds all logits."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from seft import loss
from seft.loss import TokenLoss
from tests.seft.repair.repairing import Allocated
from tests.tiny import untrained_tiny

WINDOWS = torch.randint(384, (3, 40), generator=torch.Generator().manual_seed(0))


def reference(model: nn.Module, windows: Tensor) -> Tensor:
    logits = model(input_ids=windows, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.mT, windows[:, 1:], reduction="none").flatten()


def test_losses_equal_those_of_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", 384 * 7)
    model = untrained_tiny()
    torch.testing.assert_close(TokenLoss(model)(WINDOWS), reference(model, WINDOWS))


def test_gradients_equal_those_of_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", 384 * 7)
    model = untrained_tiny().double().requires_grad_(False)
    twin = copy.deepcopy(model)
    weights = torch.rand(3 * 39, dtype=torch.float64)
    for each, losses in ((model, TokenLoss(model)), (twin, lambda windows: reference(twin, windows))):
        each.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
        (losses(WINDOWS) * weights).sum().backward()  # type: ignore[no-untyped-call]
    gradient, expected = (each.model.layers[0].mlp.up_proj.weight.grad for each in (model, twin))
    torch.testing.assert_close(gradient, expected)


def capping(**settings: float) -> Any:
    config = Gemma2Config(
        vocab_size=384,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        **settings,
    )
    return Gemma2ForCausalLM(config).eval()


@torch.no_grad()
def test_a_model_that_caps_its_logits_is_recognized() -> None:
    model = capping(final_logit_softcapping=0.5, initializer_range=0.5)
    torch.testing.assert_close(TokenLoss(model)(WINDOWS), reference(model, WINDOWS))


@torch.no_grad()
def test_a_cap_is_recognized_before_the_logits_reach_it() -> None:
    model = capping(final_logit_softcapping=30.0, initializer_range=1e-4)
    losses = TokenLoss(model)
    model.lm_head.weight.mul_(1e5)
    torch.testing.assert_close(losses(WINDOWS), reference(model, WINDOWS))


@pytest.mark.parametrize("grad", [True, False])
def test_all_logits_are_never_in_memory(monkeypatch: pytest.MonkeyPatch, grad: bool) -> None:
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", 384 * 7)
    model = untrained_tiny()
    losses = TokenLoss(model)
    with Allocated() as allocated, torch.set_grad_enabled(grad):
        losses(WINDOWS)
    assert allocated.elements < WINDOWS[:, 1:].numel() * 384
