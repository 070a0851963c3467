"""Containers with int8 and NF4 matrices: zeros are exact, weights have the nearest values, and all readers agree."""

import json
import re
import struct
from pathlib import Path
from statistics import NormalDist
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import seft
from seft.checkpoint.bfloat16 import to_bfloat16, to_float32
from seft.checkpoint.compact import index, quantised, writer
from seft.checkpoint.compact.quantised import (
    BLOCK,
    NF4,
    Blocks,
    Rows,
    quantise_blocks,
    quantise_rows,
    weights,
)
from seft.checkpoint.compact.reader import open_container
from seft.checkpoint.compact.writer import pack
from seft.checkpoint.formats import verify_format, write_format
from seft.config import OutputFormat, published_bytes
from seft.errors import ConfigError, ContainerError, VerifyError
from seft.models.shapes import file_header
from seft.models.targets import target_linears
from seft.runtime.accelerate import SparseLinear
from seft.runtime.compressed import Values, expand, quantise
from seft.runtime.generate import Sampling, TextModel
from tests.seft.checkpoint.test_compact_format import safetensors
from tests.tiny import sparse_tiny, tiny_tokenizer

INTEGERS = [OutputFormat.COMPACT_INT8, OutputFormat.COMPACT_NF4]
NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse model in bfloat16, in several shards."""
    folder = tmp_path_factory.mktemp("model") / "sparse"
    model = sparse_tiny()
    model.save_pretrained(folder, max_shard_size="100KB")
    tiny_tokenizer().save_pretrained(folder)
    return folder


def random_bits(count: int, zeros: float) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    """Return normal values in bfloat16. The smallest are replaced by zeros, and one of the zeros is negative."""
    values = np.random.default_rng(0).standard_normal(count).astype(np.float32)
    values[np.abs(values) <= np.quantile(np.abs(values), zeros)] = 0
    bits = to_bfloat16(values)
    bits[np.flatnonzero(bits == 0)[:1]] = 0x8000
    return bits


@pytest.mark.parametrize("format_", INTEGERS)
def test_the_folder_and_the_model_from_a_file_have_the_same_weights_and_the_zeros_of_the_original(
    folder: Path, tmp_path: Path, format_: OutputFormat
) -> None:
    write_format(folder, format_, file := tmp_path / "small")
    verify_format(folder, file, format_)
    with open_container(file) as container:
        size = container.expand(tmp_path / "expanded")
    assert size == sum(path.stat().st_size for path in (tmp_path / "expanded").iterdir())
    original, expanded = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16) for path in (folder, tmp_path / "expanded")
    )
    loaded, changed = seft.load(file), 0
    own, targets = original.state_dict(), {f"{name}.weight" for name in target_linears(original)}
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, expanded.state_dict()[name]), name
        changed += not torch.equal(weight, own[name])
        if name in targets:
            assert not weight[own[name] == 0].any()
        error = (weight.float() - own[name].float()).norm() / own[name].float().norm()
        assert error < (0.12 if format_ is OutputFormat.COMPACT_NF4 else 0.01)
    assert changed > len(targets)  # the embedding too


@pytest.mark.parametrize("format_", INTEGERS)
def test_the_verification_finds_a_changed_weight(folder: Path, tmp_path: Path, format_: OutputFormat) -> None:
    (copy := tmp_path / "copy").mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    write_format(copy, format_, file := tmp_path / "small")
    for path in copy.glob("*.safetensors"):
        content = path.read_bytes()
        path.write_bytes(bytes([*content[:-1], content[-1] ^ 0x40]))
        with pytest.raises(VerifyError, match="must have the values of the folder"):
            verify_format(copy, file, format_)
        path.write_bytes(content)
    verify_format(copy, file, format_)
    (copy / "config.json").write_bytes(b"{}")
    with pytest.raises(VerifyError, match=r"config.json in small must have"):
        verify_format(copy, file, format_)


def test_rounding_to_bfloat16_is_that_of_torch() -> None:
    values = np.random.default_rng(0).integers(0, 1 << 32, 100_000, np.uint32).view(np.float32)
    values = values[np.isfinite(values)]
    expected = torch.from_numpy(values).to(torch.bfloat16)
    assert np.array_equal(to_float32(to_bfloat16(values)), (expected.float() + 0.0).numpy())


def test_int8_values_are_those_of_the_runtime() -> None:
    bits = random_bits(96 * 64, 0.6)
    matrix = quantise_rows(bits, 64)
    values, scales = quantise(torch.from_numpy(to_float32(bits)).view(96, 64))
    assert np.array_equal(matrix.values, values.flatten().numpy())
    assert np.array_equal(matrix.scales, scales.numpy())


@pytest.mark.parametrize("cols", [1, 63, 64, 200])
@pytest.mark.parametrize("zeros", [0.0, 0.6, 1.0])
def test_an_nf4_weight_has_the_nearest_value_of_its_block(cols: int, zeros: float) -> None:
    bits = random_bits(30 * cols, zeros)
    original, found = (each.reshape(30, cols) for each in (to_float32(bits), weights(quantise_blocks(bits, cols))))
    assert not found[original == 0].any()
    for start in range(0, cols, BLOCK):
        block, made = original[:, start : start + BLOCK], found[:, start : start + BLOCK]
        values = NF4 * np.abs(block).max(axis=1)[:, None]
        nearest = np.abs(block[:, :, None] - values[:, None, :]).min(axis=2)
        assert np.allclose(np.abs(made - block), nearest, atol=1e-6)


def test_nf4_has_the_quantiles_of_a_normal_distribution_and_an_exact_zero() -> None:
    normal = NormalDist()
    positive = [normal.inv_cdf(float(share)) for share in np.linspace(0.9677083, 0.5, 9)[:-1]]
    negative = [-normal.inv_cdf(float(share)) for share in np.linspace(0.9677083, 0.5, 8)[:-1]]
    values = np.array(sorted([*negative, 0.0, *positive]))
    assert np.allclose(NF4, values / values.max(), atol=1e-6)
    document = (Path(__file__).parents[3] / "docs/compact-format.md").read_text()
    listed = re.search(r"appendix E\), in\s+float32: (.*?)\. The integers", document, re.DOTALL)
    assert listed
    assert np.array_equal(np.array(re.split(r",\s+|\s+and\s+", listed[1]), np.float32), NF4)


@pytest.mark.parametrize(
    "matrix",
    [
        Rows(np.zeros(7, np.int8), np.ones(2, np.float32)),
        Rows(np.zeros(7, np.int8), np.ones(0, np.float32)),
        Blocks(np.ones(65, np.int8), np.ones(1, np.uint16), 65),
        Blocks(np.ones(7, np.int8), np.ones(2, np.uint16), 3),
        Blocks(np.full(3, 9, np.int8), np.ones(1, np.uint16), 3),
        Blocks(np.full(3, -8, np.int8), np.ones(1, np.uint16), 3),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(matrix: Rows | Blocks) -> None:
    with pytest.raises(ValueError, match=r"must be|do not"):
        weights(matrix)


WRONG = (
    {"a": ("I8", [2, 4], bytes(8))},
    {"a": ("I8", [2, 4], bytes(8)), "a.block_scale": ("F32", [2, 1], bytes(8))},
    {"a": ("I8", [2, 4], bytes(8)), "a.row_scale": ("F16", [2], bytes(4))},
    {"a": ("I8", [2, 4], bytes(8)), "a.row_scale": ("F32", [1], bytes(4))},
    {"a": ("I8", [2, 4], bytes(8)), "a.row_scale": ("F32", [8], bytes(32))},
    {"a": ("I8", [2, 100], bytes(200)), "a.block_scale": ("BF16", [4, 1], bytes(8))},
    {"a": ("I8", [5, 0], b""), "a.block_scale": ("BF16", [5, 0], b"")},
    {
        "a": ("I8", [2, 4], bytes(8)),
        "a.row_scale": ("F32", [2], bytes(8)),
        "a.block_scale": ("BF16", [2, 1], bytes(4)),
    },
)
DAMAGED = (
    {"a": ("I8", [2, 4], bytes([128] * 8)), "a.row_scale": ("F32", [2], bytes(8))},
    {"a": ("I8", [2, 4], bytes([9] * 8)), "a.block_scale": ("BF16", [2, 1], bytes(4))},
    {"a": ("I8", [2, 4], bytes(8)), "a.row_scale": ("F32", [2], bytes([0, 0, 128, 127] * 2))},
    {"a": ("I8", [2, 4], bytes(8)), "a.block_scale": ("BF16", [2, 1], bytes([192, 127] * 2))},
    *(
        {"a": ("I8", [2, 4], bytes(8)), "a.row_scale": ("F32", [2], np.array([1, scale], np.float32).tobytes())}
        for scale in (3e38, 3.4028e38 / 127, -1e-40)
    ),
    {"a": ("I8", [2, 4], bytes(8)), "a.block_scale": ("BF16", [2, 1], bytes([0, 63, 0, 191]))},
)


@pytest.mark.parametrize(
    ("tensors", "kind", "message"),
    [
        *(
            (tensors, "int8", "'a' in .* must have exactly one tensor of scales, of the right dtype and shape")
            for tensors in WRONG
        ),
        *(
            (tensors, "nf4", "'a' in .* is damaged: (an integer must be from|scales must be 0 or more)")
            for tensors in DAMAGED
        ),
        ({"a": ("I8", [], bytes(1))}, "foo", "integers of the unknown kind 'foo'"),
    ],
)
def test_integers_and_scales_that_do_not_fit_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tensors: dict[str, tuple[str, list[int], bytes]],
    kind: str,
    message: str,
) -> None:
    (folder := tmp_path / "folder").mkdir()
    content = safetensors(tensors)
    (size,) = struct.unpack_from("<Q", content)
    header = json.dumps({**json.loads(content[8 : 8 + size]), "__metadata__": {"seft.integers": kind}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])
    file = tmp_path / "small.seft"
    with pytest.raises(ConfigError, match=r"must have no safetensors file with seft\.integers in its metadata"):
        pack(folder, file)
    monkeypatch.setattr(writer, "MARK", "another mark")
    pack(folder, file)
    with open_container(file) as container, pytest.raises(ContainerError, match=message):
        container.expand(tmp_path / "out")


@pytest.mark.parametrize("format_", INTEGERS)
def test_integers_that_become_too_many_bytes_in_memory_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: OutputFormat
) -> None:
    write_format(folder, format_, file := tmp_path / "small")
    with open_container(file) as container:
        most = 3 * container.size
    monkeypatch.setattr(index, "MAX_EXPANSION", 0)
    monkeypatch.setattr(index, "MIN_EXPANDED", most)
    with open_container(file) as container:
        assert container.expand(tmp_path / "out") < most
    with pytest.raises(ContainerError, match=f"must not be expanded: .* at most {most} bytes"):
        seft.load(file)


def test_a_matrix_is_made_once_while_its_chunks_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, content = [f"model.layers.{number}.mlp.up_proj.weight" for number in range(5)], bytes(2 * 64 * 64)
    (path := tmp_path / "model.safetensors").write_bytes(
        safetensors({name: ("BF16", [64, 64], content) for name in names})
    )
    make = Mock(wraps=quantised.quantise_rows)
    monkeypatch.setattr(quantised, "quantise_rows", make)
    file = quantised.QuantisedFile(path, file_header(path), "int8", 0)
    for half in (0, 1):
        for name in names:
            for tensor in (name, name + quantised.ROW_SCALE):
                place = file.tensors[tensor]
                size = (place.end - place.begin) // 2
                assert len(file.read(place.begin + half * size, size)) == size
    assert make.call_count == len(names)
    assert not file._made


@pytest.mark.parametrize(("format_", "other"), [(INTEGERS[0], INTEGERS[1]), (INTEGERS[1], INTEGERS[0])])
def test_a_file_of_another_format_is_not_verified(
    folder: Path, tmp_path: Path, format_: OutputFormat, other: OutputFormat
) -> None:
    for each in (other, OutputFormat.COMPACT):
        write_format(folder, each, file := tmp_path / each)
        with pytest.raises(VerifyError, match="must have the values of the folder"):
            verify_format(folder, file, format_)


@pytest.mark.parametrize("format_", INTEGERS)
def test_zeros_and_signs_of_the_smallest_numbers_are_kept(tmp_path: Path, format_: OutputFormat) -> None:
    (folder := tmp_path / "folder").mkdir()
    bits = np.tile(np.array([0, 1, 0x8001, 0, 3, 0x40, 0, 0x8050], np.uint16), 64)
    (folder / "model.safetensors").write_bytes(safetensors({NAME: ("BF16", [8, 64], bits.tobytes())}))
    (folder / "config.json").write_text("{}")
    write_format(folder, format_, file := tmp_path / "small")
    verify_format(folder, file, format_)
    with open_container(file) as container:
        container.expand(tmp_path / "out")
    content = (tmp_path / "out/model.safetensors").read_bytes()
    found = np.frombuffer(content[-2 * len(bits) :], np.uint16)
    assert not found[bits == 0].any()
    error = np.abs(to_float32(found) - to_float32(bits))
    assert (error <= np.abs(to_float32(bits)).max() * 0.16).all()


def test_experts_of_a_nested_configuration_keep_their_router(tmp_path: Path) -> None:
    (folder := tmp_path / "folder").mkdir()
    router, expert = "model.layers.0.mlp.gate.weight", "model.layers.0.mlp.experts.0.up_proj.weight"
    bits = random_bits(4 * 32, 0.5).tobytes()
    tensors = {router: ("BF16", [4, 32], bits), expert: ("BF16", [4, 32], bits)}
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    (folder / "config.json").write_text('{"text_config": {"num_experts": 4}}')
    write_format(folder, OutputFormat.COMPACT_NF4, file := tmp_path / "small")
    with open_container(file) as container:
        weights = next(file for file in container.files if file.name == "model.safetensors")
        dtypes = {each.name: each.dtype for each in weights.tensors}
    assert dtypes == {router: "BF16", expert: "I8", f"{expert}.block_scale": "BF16"}


@pytest.mark.parametrize("dtype", ["F16", "I8"])
def test_a_folder_that_is_not_in_bfloat16_is_refused(tmp_path: Path, dtype: str) -> None:
    (folder := tmp_path / "folder").mkdir()
    content = bytes(8 if dtype == "I8" else 16)
    (folder / "model.safetensors").write_bytes(safetensors({NAME: (dtype, [2, 4], content)}))
    (folder / "config.json").write_text("{}")
    with pytest.raises((ConfigError, ContainerError), match=r"must have matrices in bfloat16|has integers already"):
        write_format(folder, OutputFormat.COMPACT_INT8, tmp_path / "small")


def test_a_packed_folder_is_restored_bit_for_bit_whatever_its_tensors_are_called(tmp_path: Path) -> None:
    (folder := tmp_path / "folder").mkdir()
    tensors = {"a": ("I8", [2, 4], bytes(range(8))), "a.row_scale": ("F32", [2], bytes(8))}
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    pack(folder, file := tmp_path / "small.seft")
    with open_container(file) as container:
        container.expand(tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("format_", INTEGERS)
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, format_: OutputFormat) -> None:
    (folder := tmp_path / "folder").mkdir()
    infinite = np.full(8, 0x7F80, np.uint16).tobytes()
    (folder / "model.safetensors").write_bytes(safetensors({NAME: ("BF16", [2, 4], infinite)}))
    (folder / "config.json").write_text("{}")
    with pytest.raises(ContainerError, match=f"'{NAME}' cannot become integers: weights must be finite"):
        write_format(folder, format_, tmp_path / "small")
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("format_", INTEGERS)
@pytest.mark.parametrize("zeros", [0.3, 0.6])
def test_the_estimated_size_is_near_that_of_the_file(tmp_path: Path, format_: OutputFormat, zeros: float) -> None:
    (folder := tmp_path / "folder").mkdir()
    bits = random_bits(1024 * 512, zeros)
    (folder / "model.safetensors").write_bytes(safetensors({NAME: ("BF16", [1024, 512], bits.tobytes())}))
    (folder / "config.json").write_text("{}")
    write_format(folder, format_, file := tmp_path / "small")
    estimate = published_bytes([format_], bits.size, bits.size - int(np.count_nonzero(bits & 0x7FFF)))
    assert file.stat().st_size <= 1.01 * estimate <= 1.2 * file.stat().st_size


def test_the_runtime_multiplies_with_the_integers_of_the_file(folder: Path, tmp_path: Path) -> None:
    write_format(folder, OutputFormat.COMPACT_INT8, file := tmp_path / "model-int8.seft")
    text = TextModel.load(str(file), None, torch.bfloat16)
    dense = TextModel.load(str(folder), Values.INT8, torch.bfloat16)
    layers = 0
    for (name, own), other in zip(text.model.named_modules(), dense.model.modules(), strict=True):
        if isinstance(own, SparseLinear):
            layers += 1
            assert torch.equal(expand(own.matrix), expand(other.matrix)), name
            assert own.matrix.scales is not None
            assert torch.allclose(own.matrix.scales, other.matrix.scales, rtol=1e-6), name
    assert layers == len(target_linears(AutoModelForCausalLM.from_pretrained(folder))) + 1
    assert {parameter.dtype for parameter in text.model.parameters()} == {torch.bfloat16}
    prompt = text.encode("The class statement")
    assert len(list(text.tokens(prompt, 8, Sampling()))) == 8
