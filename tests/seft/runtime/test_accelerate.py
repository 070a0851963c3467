"""Models whose linear layers are replaced by faster ones."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

import seft
from seft.checkpoint.compact.writer import pack
from seft.errors import AccelerateError
from seft.models.targets import target_linears
from seft.native import kernels
from seft.native.kernels import Level
from seft.runtime.accelerate import DenseLinear, SparseLinear
from seft.runtime.compressed import EXPANDED_FROM
from seft.runtime.generate import Sampling, TextModel
from tests.seft.architectures import LATENT, Architecture
from tests.seft.runtime.test_kernels import level
from tests.tiny import tiny_tokenizer, untrained_tiny

__all__ = ["level"]


def pruned(zeros: float = 0.6) -> Any:
    """The tiny model with bfloat16 values in float32, pruned by magnitude."""
    model = untrained_tiny()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    for target in target_linears(model).values():
        flat = target.weight.abs().flatten()
        target.weight[target.weight.abs() <= flat.kthvalue(int(zeros * flat.numel())).values] = 0
    return model


@pytest.mark.parametrize("compiled", [True, False])
def test_greedy_tokens_equal_those_of_transformers_in_float32(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, *, compiled: bool
) -> None:
    model, tokenizer = pruned(), AutoTokenizer.from_pretrained(tiny_folder)
    prompt = tokenizer("The class statement")["input_ids"]
    wanted = model.generate(torch.tensor([prompt]), max_new_tokens=30, do_sample=False)[0, len(prompt) :].tolist()
    if not compiled:
        monkeypatch.setattr(kernels, "library", lambda: None)
    text = TextModel(seft.accelerate(model), tokenizer)
    assert any(isinstance(module, SparseLinear) for module in model.modules())
    assert list(text.tokens(prompt, 30, Sampling())) == wanted


@pytest.mark.parametrize("length", [20, 31, 32, 33, 40])
def test_greedy_tokens_equal_those_of_transformers_where_positions_change_with_the_length(
    tiny_folder: Path, length: int
) -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 4.0, 8.0, 20.0],
    }
    settings = {"num_key_value_heads": 2, "rope_parameters": rope, "original_max_position_embeddings": 32}
    model, tokenizer = Architecture("phi3", 8, settings).model(), AutoTokenizer.from_pretrained(tiny_folder)
    prompt = [2 + 7 * number % 300 for number in range(length)]
    wanted = model.generate(torch.tensor([prompt]), max_new_tokens=30, do_sample=False)[0, length:].tolist()
    assert list(TextModel(model, tokenizer).tokens(prompt, 30, Sampling())) == wanted


WITH_OTHER_BUFFERS: dict[str, dict[str, Any]] = {
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
    "minimax": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "block_size": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
}
"""Architectures that compute only if some buffers have the dtype of the weights."""


@pytest.mark.parametrize("kind", WITH_OTHER_BUFFERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_folder_runs_like_its_compact_file(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    Architecture(kind, 0, WITH_OTHER_BUFFERS[kind]).model().bfloat16().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    pack(tmp_path / "model", tmp_path / "model.seft")
    found = []
    for name in ("model", "model.seft"):
        model = TextModel.load(str(tmp_path / name), None, dtype)
        assert {each.dtype for each in model.model.parameters()} == {dtype}
        found.append(list(model.tokens(range(5, 17), 8, Sampling())))
    assert found[0] == found[1]


def test_int8_replaces_every_linear_and_keeps_the_zeros() -> None:
    model = pruned()
    zeros = {name: target.weight == 0 for name, target in target_linears(model).items()}
    seft.accelerate(model, "int8")
    for name, zero in zeros.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, SparseLinear)
        one = torch.eye(layer.in_features)
        assert not layer(one).T[zero].any()
    assert isinstance(model.get_output_embeddings(), SparseLinear)


def test_dense_and_compressed_layers_give_the_same_bits(level: Level) -> None:
    dense, sparse = (seft.accelerate(pruned().bfloat16(), least_zeros=least) for least in (2.0, 0.0))
    pairs = [(dense.get_submodule(name), sparse.get_submodule(name)) for name in target_linears(pruned())]
    assert all(isinstance(layer, SparseLinear) for _, layer in pairs)
    faster = [pair for pair in pairs if isinstance(pair[0], DenseLinear)]
    assert bool(faster) is (level in {Level.AVX2, Level.AVX512})
    for pair in faster:
        x = torch.randn(EXPANDED_FROM - 1, pair[0].weight.shape[1]).bfloat16()
        assert torch.equal(*(layer(x) for layer in pair))


@pytest.mark.parametrize("values", ["int4", None])
def test_values_must_be_known(values: Any) -> None:
    with pytest.raises(AccelerateError, match=f"values must be bfloat16 or int8; it is {values!r}"):
        seft.accelerate(pruned(), values)


def test_an_accelerated_model_is_not_accelerated_again() -> None:
    model = seft.accelerate(pruned())
    with pytest.raises(AccelerateError, match="is accelerated already"):
        seft.accelerate(model, "int8")


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj", "model.layers.3.mlp.down_proj", "lm_head"])
def test_a_model_of_float32_values_is_refused_and_nothing_is_replaced(name: str) -> None:
    model = pruned()
    weight = model.get_submodule(name).weight.data
    weight[: len(weight) // 2] = 0
    weight[0, 0] = 1.0001
    with pytest.raises(AccelerateError, match="must be bfloat16 values"):
        seft.accelerate(model)
    assert not any(isinstance(module, SparseLinear) for module in model.modules())
    assert isinstance(seft.accelerate(model, "int8").get_submodule(name), SparseLinear)


def test_a_matrix_of_float32_values_with_few_zeros_stays_dense() -> None:
    model, name = pruned(0.1), "model.layers.0.mlp.up_proj"
    layer = model.get_submodule(name)
    layer.weight.data[0, 0] = 1.0001
    assert seft.accelerate(model).get_submodule(name) is layer
    assert layer.weight[0, 0] == torch.tensor(1.0001)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj", "model.norm", "model.embed_tokens"])
def test_weights_that_are_not_finite_are_refused_and_nothing_is_replaced(name: str, number: float) -> None:
    model = pruned()
    model.get_submodule(name).weight.data.view(-1)[3] = number
    with pytest.raises(AccelerateError, match=rf"weights must be finite numbers; {name}\.weight has"):
        seft.accelerate(model)
    assert not any(isinstance(module, SparseLinear) for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_model_of_another_dtype_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(AccelerateError, match=f"must be bfloat16 or float32; model.embed_tokens.weight is {dtype}"):
        seft.accelerate(untrained_tiny().to(dtype), "int8")


@pytest.mark.parametrize("least_zeros", [0.3, 1.1])
@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_an_accelerated_model_is_not_copied(copied: Callable[[Any], Any], least_zeros: float) -> None:
    """This holds for sparse matrices and for dense ones, because the addresses of both are kept."""
    model = seft.accelerate(pruned().to(torch.bfloat16), least_zeros=least_zeros)
    if not any(isinstance(module, SparseLinear | DenseLinear) for module in model.modules()):
        pytest.skip("this processor has no faster dense product")
    with pytest.raises(AccelerateError, match="cannot be copied or pickled"):
        copied(model)


def test_an_accelerated_model_is_not_saved_without_its_weights(tmp_path: Path) -> None:
    with pytest.raises(AccelerateError, match="cannot be saved"):
        seft.accelerate(pruned()).save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


class Scaled(nn.Linear):
    """A linear layer that computes more than a product."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 3


class FalconLinear(nn.Linear):
    """A linear layer that computes the product in its own way."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


@pytest.mark.parametrize(("kind", "replaced"), [(Scaled, False), (FalconLinear, True)])
@pytest.mark.parametrize("values", ["bfloat16", "int8"])
def test_a_layer_with_its_own_forward_function_stays_as_it_is(
    kind: type[nn.Linear], values: str, caplog: pytest.LogCaptureFixture, *, replaced: bool
) -> None:
    model, tokens = pruned(), torch.arange(2, 12)[None]
    model.get_submodule("model.layers.0.mlp.up_proj").__class__ = kind
    model.lm_head.__class__ = kind
    expected = model(tokens, use_cache=False).logits.detach()
    seft.accelerate(model, values)
    logits = model(tokens, use_cache=False).logits
    assert (logits - expected).std() < 0.05 * expected.std()
    assert isinstance(model.get_submodule("model.layers.0.mlp.up_proj"), SparseLinear) is replaced
    assert (
        "2 matrices of experts or of layers with their own forward function stay dense" in caplog.text
    ) is not replaced


def test_a_model_may_read_the_dtype_and_the_shape_of_a_compressed_weight() -> None:
    model = pruned().to(torch.bfloat16)
    shapes = {name: target.weight.shape for name, target in target_linears(model).items()}
    seft.accelerate(model)
    for name, shape in shapes.items():
        layer = model.get_submodule(name)
        assert (layer.weight.shape, layer.weight.dtype) == (shape, torch.bfloat16)
        assert not [*layer.parameters(), *layer.buffers()]


def test_a_model_with_a_lightning_indexer_runs() -> None:
    """Its forward function reads the dtypes of weights."""
    model = Architecture("deepseek_v32", 0, LATENT).model().to(torch.bfloat16)
    tokens = torch.arange(2, 12)[None]
    expected = model(tokens).logits.detach()
    torch.testing.assert_close(seft.accelerate(model, least_zeros=0)(tokens).logits, expected, rtol=0.02, atol=0.2)
