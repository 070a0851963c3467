"""Zero counts: equal to counts by hand, and equal in memory and on disk."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AriaTextConfig, AriaTextForCausalLM

from seft.checkpoint import sparsity
from seft.checkpoint.counts import Count
from seft.checkpoint.folder import count_zeros
from seft.errors import VerifyError
from seft.models.targets import target_linears
from tests.seft.counting import counted
from tests.tiny import untrained_tiny

Q = "model.layers.0.self_attn.q_proj"


def test_zeros_of_both_signs_are_counted_in_their_layer(tmp_path: Path) -> None:
    model = untrained_tiny()
    weight = target_linears(model)[Q].weight.data
    weight[0], weight[1] = 0.0, -0.0
    model.save_pretrained(tmp_path)
    found = sparsity.of_folder(tmp_path)
    assert found.layers[Q] == Count(128, 64 * 64)
    assert found.linears == Count(128, sum(linear.weight.numel() for linear in target_linears(model).values()))


def test_the_whole_model_counts_tied_weights_once_and_every_parameter(tmp_path: Path) -> None:
    model = untrained_tiny()
    model.save_pretrained(tmp_path)
    before = sparsity.of_folder(tmp_path).model
    model.model.embed_tokens.weight.data[3] = 0.0
    assert before.weights == sum(weight.numel() for weight in model.parameters())
    model.save_pretrained(tmp_path)
    assert sparsity.of_folder(tmp_path).model == before + Count(64, 0)


def test_a_folder_has_the_counts_of_the_written_model(tmp_path: Path) -> None:
    model = untrained_tiny()
    for number, linear in enumerate(target_linears(model).values()):
        linear.weight.data[:number] = 0.0
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert sparsity.of_folder(tmp_path) == counted(model)


def test_routers_are_not_counted_as_linears_whatever_key_names_the_number_of_experts(tmp_path: Path) -> None:
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = AriaTextConfig(**sizes, **heads, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1, pad_token_id=0)
    AriaTextForCausalLM(config).save_pretrained(tmp_path)
    assert count_zeros(tmp_path, config.to_dict()).linears == sparsity.of_folder(tmp_path).linears


def test_a_head_that_was_saved_with_its_tied_embedding_is_counted_once(tmp_path: Path) -> None:
    model = untrained_tiny()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert sparsity.of_folder(tmp_path) == counted(model)


def test_a_folder_without_one_of_its_linears_is_rejected(tmp_path: Path) -> None:
    untrained_tiny().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[f"{Q}.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(VerifyError, match=Q):
        sparsity.of_folder(tmp_path)


def test_shares_add_up() -> None:
    assert (Count(1, 4) + Count(2, 4)).share == 3 / 8
    assert Count(0, 0).share == 0.0


def test_a_skeleton_has_no_weights_in_memory(tmp_path: Path) -> None:
    untrained_tiny().save_pretrained(tmp_path)
    assert all(weight.device == torch.device("meta") for weight in sparsity.skeleton(tmp_path).parameters())
