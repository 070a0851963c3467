"""The targets are the linear maps of the decoder blocks, in every architecture."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from seft.config import Pattern, PruneConfig, PruneMethod
from seft.errors import SourceError
from seft.evaluate import perplexity
from seft.models.targets import block_linears, count_nonzeros, decoder_blocks, norms_and_biases, target_linears
from seft.prune.loop import prune_model
from tests.tiny import untrained_tiny

SMALL = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_a_llama_has_seven_targets_per_block_in_the_models_order() -> None:
    model = untrained_tiny()
    names = list(target_linears(model))
    assert len(names) == 4 * 7
    assert names[:2] == ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"]
    assert names[-1] == "model.layers.3.mlp.down_proj"
    assert all(model.get_submodule(name) is target.module for name, target in target_linears(model).items())


def gpt_neox() -> Any:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL, intermediate_size=32))


def opt() -> Any:
    return OPTForCausalLM(OPTConfig(**SMALL, ffn_dim=32, word_embed_proj_dim=16))


def mixtral() -> Any:
    return MixtralForCausalLM(MixtralConfig(**SMALL, intermediate_size=16, num_local_experts=2, num_key_value_heads=1))


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2))


@pytest.mark.parametrize(
    ("make", "blocks", "targets"), [(gpt_neox, "gpt_neox.layers", 2 * 4), (opt, "model.decoder.layers", 2 * 6)]
)
def test_the_targets_of_other_architectures_are_found_by_structure(
    make: Callable[[], nn.Module], blocks: str, targets: int
) -> None:
    model = make()
    assert decoder_blocks(model) is model.get_submodule(blocks)
    assert len(target_linears(model)) == targets
    assert all(name.startswith(blocks) for name in target_linears(model))


def test_experts_are_targets_and_their_routers_are_not() -> None:
    block = nn.ModuleDict(
        {
            "attention": nn.Linear(4, 4),
            "mixture": nn.ModuleDict(
                {
                    "gate": nn.Linear(4, 2),
                    "shared_gate": nn.Linear(4, 1),
                    "shared": nn.Sequential(nn.Linear(4, 4)),
                    "experts": nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]),
                }
            ),
        }
    )
    expected = ["attention", "mixture.shared.0", "mixture.experts.0", "mixture.experts.1"]
    assert list(block_linears(block)) == expected


def test_the_weight_of_a_target_has_outputs_as_rows_in_every_storage_layout() -> None:
    conv = target_linears(gpt2())["transformer.h.0.mlp.c_fc"]
    assert (conv.weight.shape, conv.parameter.shape) == ((64, 16), (16, 64))
    model = mixtral()
    expert = target_linears(model)["model.layers.1.mlp.experts.gate_up_proj.1"]
    assert torch.equal(expert.weight, model.model.layers[1].mlp.experts.gate_up_proj[1])
    expert.weight[3] = 0
    assert not model.model.layers[1].mlp.experts.gate_up_proj[1, 3].any()


def llama4() -> Any:
    sizes = {**SMALL, "intermediate_size": 16, "intermediate_size_mlp": 16, "head_dim": 8, "num_key_value_heads": 1}
    return Llama4ForCausalLM(Llama4TextConfig(**sizes, num_local_experts=2, pad_token_id=0)).eval()


def test_experts_in_an_unsupported_layout_are_rejected_even_without_calibration_text() -> None:
    model = llama4()
    before = {name: target.weight.clone() for name, target in target_linears(model).items()}
    config = PruneConfig(0.5, PruneMethod.MAGNITUDE, Pattern(2, 4))
    with pytest.raises(SourceError, match="Llama4TextExperts combines several in bmm"):
        prune_model(model, torch.zeros(0, 2, dtype=torch.int64), config)
    assert all(torch.equal(before[name], target.weight) for name, target in target_linears(model).items())


def test_such_a_model_is_also_rejected_before_it_is_evaluated() -> None:
    with pytest.raises(SourceError, match=r"Llama4ForCausalLM has none\. Choose a different model"):
        perplexity(llama4(), torch.zeros(1, 8, dtype=torch.int64))


def test_a_shared_expert_whose_width_equals_the_number_of_experts_is_not_a_router() -> None:
    shared = nn.ModuleDict({"up": nn.Linear(4, 2), "down": nn.Linear(2, 4)})
    mixture = {"gate": nn.Linear(4, 2), "shared": shared, "experts": nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])}
    targets = block_linears(nn.ModuleDict({"mixture": nn.ModuleDict(mixture)}))
    assert list(targets) == [f"mixture.{name}" for name in ("shared.up", "shared.down", "experts.0", "experts.1")]
    assert [target.expert for target in targets.values()] == [False, False, True, True]


@pytest.mark.parametrize("other", [nn.Conv1d(4, 4, 3), nn.Bilinear(1, 3, 4), nn.ParameterList([torch.ones(4, 4)])])
def test_a_block_with_other_weights_is_rejected(other: nn.Module) -> None:
    with pytest.raises(SourceError, match="must belong to a linear layer"):
        block_linears(nn.ModuleDict({"map": nn.Linear(4, 4), "other": other}))


def test_linears_or_blocks_that_share_a_weight_are_rejected() -> None:
    tied, looped = untrained_tiny(), untrained_tiny()
    tied.model.layers[3].mlp.up_proj.weight = tied.model.layers[1].mlp.gate_proj.weight
    looped.model.layers[2] = looped.model.layers[0]
    with pytest.raises(SourceError, match=r"1\.mlp\.gate_proj and 3\.mlp\.up_proj share one"):
        target_linears(tied)
    with pytest.raises(SourceError, match=r"0\.self_attn\.q_proj and 2\.self_attn\.q_proj share one"):
        target_linears(looped)


def test_a_model_without_blocks_is_rejected() -> None:
    with pytest.raises(SourceError, match="must have decoder blocks with linear layers"):
        decoder_blocks(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(SourceError, match="must have decoder blocks with linear layers"):
        decoder_blocks(nn.Sequential(nn.ModuleList([nn.LayerNorm(2)])))


def test_embeddings_head_and_norms_are_not_targets() -> None:
    model = untrained_tiny()
    others = {name for name, _ in model.named_parameters()} - {f"{name}.weight" for name in target_linears(model)}
    assert {name.split(".")[-2].split("_")[-1] for name in others} == {"tokens", "layernorm", "norm"}


def test_the_bias_of_a_head_is_no_norm_or_bias() -> None:
    model = PhiForCausalLM(PhiConfig(**SMALL, intermediate_size=32, pad_token_id=0))
    vectors = {name for name, parameter in model.named_parameters() if parameter.ndim == 1}
    assert vectors - set(norms_and_biases(model)) == {"lm_head.bias"}


@pytest.mark.parametrize("shape", [(), (0,), (0, 5), (5, 0), (70_000,), (300, 700), (3, 200, 200)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8])
def test_nonzeros_are_counted_in_any_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weights = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    if weights.is_floating_point():
        weights[weights == 2] = -0.0
        weights[weights == 1] = float("nan")
    assert count_nonzeros(weights) == int((weights != 0).sum())
    if weights.dim() > 1:
        assert count_nonzeros(weights.mT) == count_nonzeros(weights)
