"""Dimensions read from file headers equal what the library counts in the loaded model."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core.estimate.footprint import memory_by_phase
from core.specs import JobSpec
from seft.config import PruneMethod
from seft.data.packing import Packed
from seft.errors import SourceError
from seft.models.dimensions import MAX_SHAPES, context_length, read_dimensions
from seft.models.shapes import shapes
from seft.models.source import Kind, ModelSource, find
from tests.core.estimate.test_fitting import MINIMAL
from tests.hollow import BLOCKS, SHAPES, VOCABULARY, write_hollow
from tests.seft.architectures import ARCHITECTURES, LATENT, Architecture


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_and_target_linears_equal_those_of_the_library_for_every_architecture(
    name: str, tmp_path: Path
) -> None:
    from seft.models.targets import block_linears, decoder_blocks, target_linears

    model = ARCHITECTURES[name].model()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_bytes())
    source = ModelSource(name, Kind.FOLDER, tmp_path, None, config, None)
    dimensions, targets = read_dimensions(source, shapes(source)), target_linears(model)
    sizes = {id(tensor): tensor.numel() for tensor in model.state_dict(keep_vars=True).values()}
    assert dimensions.parameters == sum(sizes.values())
    assert dimensions.targets == sum(target.weight.numel() for target in targets.values())
    assert (dimensions.vocabulary, dimensions.hidden) == model.get_input_embeddings().weight.shape
    assert 0 < dimensions.active_targets <= dimensions.targets
    for block, matrices in zip(decoder_blocks(model), dimensions.blocks, strict=True):
        counted = Counter[tuple[int, int]]()
        for matrix in matrices:
            counted[matrix.rows, matrix.cols] += matrix.count
        assert counted == Counter(tuple(target.weight.shape) for target in block_linears(block).values())
    assert dimensions.stacked == any(target.number is not None for target in targets.values())
    assert dimensions.context == 128
    assert dimensions.sizes == {name: getattr(model.config, name) for name in dimensions.sizes}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gemma4_text", {"hidden_size_per_layer_input": 48, "vocab_size_per_layer_input": 384}),
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 16}),
        ("gpt2", {"n_inner": 48}),
        ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128}),
    ],
)
def test_the_width_of_the_hidden_state_may_differ_from_that_of_an_embedding(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    from seft.models.targets import decoder_blocks, hidden_state

    model = Architecture(kind, 0, settings).model()
    model.save_pretrained(tmp_path)
    config, widths = json.loads((tmp_path / "config.json").read_bytes()), list[int]()
    source = ModelSource(kind, Kind.FOLDER, tmp_path, None, config, None)
    decoder_blocks(model)[0].register_forward_hook(lambda *call: widths.append(hidden_state(call[2]).shape[-1]))
    model(input_ids=torch.tensor([[1, 2, 3]]))
    assert widths == [read_dimensions(source, shapes(source)).hidden]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {}),
        ("gemma2", {"head_dim": 8}),
        ("gemma3_text", {"head_dim": 8}),
        ("gemma3_text", {"head_dim": 8, "final_logit_softcapping": 30.0}),
        ("cohere", {}),
        ("cohere", {"logit_scale": 1.0}),
        ("granite", {}),
        ("granite", {"logits_scaling": 8.0}),
        ("recurrent_gemma", {"lru_width": 32}),
        ("minicpm3", {**LATENT, "dim_model_base": 16}),
        ("minicpm3", {**LATENT, "dim_model_base": 32}),
    ],
    ids=str,
)
def test_a_model_that_caps_or_scales_its_logits_is_seen_in_its_config(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    from seft.models.predictor import Predictor

    model = Architecture(kind, 0, {"num_key_value_heads": 2, **settings}).model()
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    source, tokens = find(str(tmp_path)), Packed.of(torch.tensor([[1, 2, 3]]))
    width = Predictor(model).rows(tokens).last.shape[1]
    assert read_dimensions(source, shapes(source)).changes_logits == (width == model.config.vocab_size)


@pytest.mark.parametrize("value", [None, 0, 1.0, True, "2", [2], {}], ids=str)
def test_a_value_that_is_no_factor_does_not_scale_logits(value: object, tmp_path: Path) -> None:
    source = find(str(write_hollow(tmp_path / "model", logit_scale=value)))
    assert not read_dimensions(source, SHAPES).changes_logits


def test_all_shards_of_a_folder_are_read(tmp_path: Path) -> None:
    model = ARCHITECTURES["llama"].model()
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    for folder in ("one", "many"):
        (tmp_path / folder / "tokenizer.json").write_text("{}")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    one, many = (shapes(find(folder, roots=[tmp_path])) for folder in ("one", "many"))
    assert one == many


@pytest.mark.parametrize("header", [b"", b"\xff" * 9, b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b'{"'])
def test_weights_without_a_header_are_rejected(header: bytes, tmp_path: Path) -> None:
    (write_hollow(tmp_path / "model") / "model.safetensors").write_bytes(header)
    with pytest.raises(SourceError, match="no readable header"):
        shapes(find("model", roots=[tmp_path]))


def test_a_model_without_blocks_is_rejected(tmp_path: Path) -> None:
    write_hollow(tmp_path / "model")
    source = find("model", roots=[tmp_path])
    assert shapes(source) == SHAPES
    for embedding in ((8, 4), (0, 4)):
        with pytest.raises(SourceError, match="must have an embedding and blocks with linear layers"):
            read_dimensions(source, {"model.embed_tokens.weight": embedding})


def test_experts_are_counted_and_not_built(tmp_path: Path) -> None:
    write_hollow(tmp_path / "model")
    stacked = {**SHAPES, "model.layers.0.mlp.experts.gate_up_proj": (10**9, 2, 3)}
    apart = {**SHAPES, **{f"model.layers.0.mlp.experts.{n}.gate_proj.weight": (2, 3) for n in range(1000)}}
    source = find("model", roots=[tmp_path])
    for shapes_, experts in ((stacked, 10**9), (apart, 1000)):
        dimensions = read_dimensions(source, shapes_)
        assert [each.count for each in dimensions.blocks[0] if (each.rows, each.cols) == (2, 3)] == [experts]
        assert dimensions.targets == read_dimensions(source, SHAPES).targets + 6 * experts


def yarn(**more: Any) -> dict[str, Any]:
    return {"rope_type": "yarn", "factor": 4.0, **more}


@pytest.mark.parametrize(
    ("more", "context"),
    [
        ({}, 2048),
        ({"max_position_embeddings": None, "n_positions": 1024}, 1024),
        ({"max_position_embeddings": None, "max_seq_len": 4096}, 4096),
        ({"max_position_embeddings": None, "max_sequence_length": 4096}, 4096),
        ({"max_position_embeddings": None}, None),
        ({"max_position_embeddings": 0}, None),
        ({"rope_scaling": None}, 2048),
        ({"rope_scaling": {"type": "linear", "factor": 4}}, 8192),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 1.5}}, 3072),
        ({"rope_scaling": yarn()}, 8192),
        ({"rope_parameters": yarn(original_max_position_embeddings=512)}, 2048),
        ({"rope_parameters": yarn(original_max_position_embeddings=1024)}, 4096),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 2048}}, 2048),
        ({"rope_scaling": {"type": "longrope", "original_max_position_embeddings": 4096}}, 2048),
        ({"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "model_type": "gemma3_text"}, 2048),
        ({"rope_parameters": {"full_attention": yarn(), "sliding_attention": {"rope_type": "default"}}}, 2048),
        ({"rope_scaling": {"type": ["linear"], "factor": 4}}, 2048),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, 2048),
        ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, 2048),
        ({"rope_scaling": {"type": "linear", "factor": 1e300}}, 1 << 31),
        ({"rope_scaling": yarn(original_max_position_embeddings=10**400)}, 1 << 31),
        ({"text_config": {"max_position_embeddings": 77}}, 77),
    ],
    ids=str,
)
def test_the_context_is_read_under_every_name_and_with_scaled_positions(
    tmp_path: Path, more: dict[str, Any], context: int | None
) -> None:
    folder = write_hollow(tmp_path / "model", **{"max_position_embeddings": 2048, **more})
    assert context_length(find(str(folder))) == context
    assert read_dimensions(find(str(folder)), SHAPES).context == context


def test_buffers_of_older_files_are_no_parameters(tmp_path: Path) -> None:
    write_hollow(tmp_path / "model")
    source = find("model", roots=[tmp_path])
    old = {
        "model.layers.0.attention.bias": (1, 1, 512, 512),
        "model.layers.0.attention.masked_bias": (),
        "model.layers.0.self_attn.rotary_emb.inv_freq": (32,),
        "lm_head.bias": (VOCABULARY,),
    }
    plain, with_buffers = read_dimensions(source, SHAPES), read_dimensions(source, {**SHAPES, **old})
    assert with_buffers.parameters == plain.parameters + VOCABULARY
    assert (with_buffers.vectors, with_buffers.blocks) == (plain.vectors, plain.blocks)


PREDICTED = {
    f"model.layers.{BLOCKS}.self_attn.q_proj.weight": (64, 64),
    f"model.layers.{BLOCKS}.eh_proj.weight": (64, 128),
    f"model.layers.{BLOCKS}.embed_tokens.weight": (VOCABULARY, 64),
    f"model.layers.{BLOCKS}.enorm.weight": (64,),
}
"""Tensors of a block for multi-token prediction after the decoder blocks."""


@pytest.mark.parametrize(
    ("more", "extra"),
    [
        ({"num_nextn_predict_layers": 1}, PREDICTED),
        ({"num_mtp_layers": 1}, PREDICTED),
        ({}, {"mtp.fc.weight": (9999, 64), "mtp.layers.0.proj.weight": (64, 9999), "mtp.norm.weight": (64,)}),
        ({}, {"model.mtp.layers.0.proj.weight": (64, 99), "model.mtp_block.0.proj.weight": (64, 99)}),
    ],
    ids=["nextn", "layers", "mtp", "model.mtp"],
)
def test_tensors_for_multi_token_prediction_are_not_counted(
    tmp_path: Path, more: dict[str, int], extra: dict[str, tuple[int, ...]]
) -> None:
    source = find(str(write_hollow(tmp_path / "model", num_hidden_layers=BLOCKS, **more)))
    assert read_dimensions(source, {**SHAPES, **extra}) == read_dimensions(source, SHAPES)


@pytest.mark.parametrize(
    "more",
    [
        {"max_position_embeddings": 10**400},
        {"num_attention_heads": 1 << 40, "head_dim": 1 << 40},
    ],
)
def test_a_number_that_no_model_has_is_rejected(tmp_path: Path, more: dict[str, int]) -> None:
    config = write_hollow(tmp_path / "model") / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_bytes()), **more}))
    with pytest.raises(SourceError, match="must be at most 2147483648"):
        read_dimensions(find("model", roots=[tmp_path]), SHAPES)


@pytest.mark.parametrize("name", ["num_hidden_layers", "n_layer", "vocab_size"])
@pytest.mark.parametrize("value", [2_000_000_000, 10**12, -1, 0, 4.0, True, "x", [4]])
def test_a_config_that_claims_more_than_the_weight_files_have_is_rejected(
    tmp_path: Path, name: str, value: object
) -> None:
    config = write_hollow(tmp_path / "model") / "config.json"
    content = json.loads(config.read_bytes())
    for accepted in (None, BLOCKS):
        config.write_text(json.dumps({**content, name: accepted}))
        read_dimensions(find("model", roots=[tmp_path]), SHAPES)
    config.write_text(json.dumps({**content, name: max(BLOCKS, VOCABULARY) + 1}))
    with pytest.raises(SourceError, match=f"`{name}` of a model must be an integer from 1 to"):
        read_dimensions(find("model", roots=[tmp_path]), SHAPES)
    config.write_text(json.dumps({**content, "text_config": {name: value}}))
    with pytest.raises(SourceError, match=f"`{name}` of a model must be an integer from 1 to"):
        find("model", roots=[tmp_path])
    config.write_text(json.dumps({**content, name: value}))
    with pytest.raises(SourceError, match=f"`{name}` of a model must be an integer from 1 to"):
        find("model", roots=[tmp_path])


def test_the_number_of_different_matrices_is_limited(tmp_path: Path) -> None:
    write_hollow(tmp_path / "model")
    many = {f"model.layers.{n}.proj.weight": (2, 3 + n) for n in range(MAX_SHAPES + 1)}
    with pytest.raises(SourceError, match=f"at most {MAX_SHAPES} weight matrices of different shapes"):
        read_dimensions(find("model", roots=[tmp_path]), {**SHAPES, **many})


def test_a_block_without_linear_layers_can_be_estimated(tmp_path: Path) -> None:
    write_hollow(tmp_path / "model")
    dimensions = read_dimensions(find("model", roots=[tmp_path]), {**SHAPES, "model.layers.9.norm.weight": (64,)})
    for method in PruneMethod:
        prune = {"method": method}
        assert memory_by_phase(dimensions, JobSpec.model_validate({**MINIMAL, "prune": prune}))


EXPERTS = {"num_key_value_heads": 2, "head_dim": 8}
MIXTURES: dict[str, dict[str, Any]] = {
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2},
    "jetmoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 8},
    "ernie4_5_moe": {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 16,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": 1,
        "moe_layer_interval": 1,
    },
    "gemma4_text": {
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
    },
}
"""Architectures with experts of special names -> their settings. A token uses two of four experts."""


@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_and_routers_of_special_names_are_the_same_in_a_file_and_in_a_model(kind: str, tmp_path: Path) -> None:
    from seft.models.targets import target_linears

    model = Architecture(kind, 0, {**EXPERTS, **MIXTURES[kind]}).model()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_bytes())
    source = ModelSource("mixture", Kind.FOLDER, tmp_path, None, config, None)
    dimensions, targets = read_dimensions(source, shapes(source)), target_linears(model).values()
    assert any(target.expert for target in targets)
    assert dimensions.targets == sum(target.weight.numel() for target in targets)
    assert dimensions.active_targets == sum(target.weight.numel() / (1 + target.expert) for target in targets)
    assert dimensions.stacked == any(target.number is not None for target in targets)


@pytest.mark.parametrize(
    ("more", "shared"), [({}, False), ({"num_kv_shared_layers": 0}, False), ({"num_kv_shared_layers": 2}, True)]
)
def test_blocks_that_use_keys_of_other_blocks_are_seen(more: dict[str, int], shared: bool, tmp_path: Path) -> None:
    write_hollow(tmp_path / "model")
    source = find("model", roots=[tmp_path])
    source = replace(source, config={**source.config, **more})
    assert read_dimensions(source, SHAPES).shares_keys == shared
