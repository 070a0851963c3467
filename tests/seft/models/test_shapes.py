"""A header of a weight file is accepted only if the file can contain its tensors, and only within limits."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from seft.errors import SourceError
from seft.models import limits, safetensors_header
from seft.models.gguf_header import read_shapes
from seft.models.safetensors_header import BITS, Header, Tensor, merge, read_header
from seft.models.shapes import shapes
from seft.models.source import Kind, ModelSource
from tests.hollow import safetensors

ONE = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def parse(content: bytes, size: int | None = None) -> Header:
    return read_header(lambda start, size: content[start : start + size], len(content) if size is None else size)


def test_the_shapes_of_a_file_of_the_library_are_read(tmp_path: Path) -> None:
    tensors = {
        "whole": torch.zeros(4, 6, dtype=torch.bfloat16),
        "scalar": torch.zeros(()),
        "none": torch.zeros(0, 3),
        "eight": torch.zeros(5, dtype=torch.float8_e4m3fn),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    assert parse(content).shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert set(BITS.values()) == {4, 6, 8, 16, 32, 64}


def test_a_header_longer_than_the_first_read_is_read_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_header, "_FIRST_READ", 20)
    assert parse(safetensors({"a": ONE}, 24)).shapes == {"a": (2, 3)}


@pytest.mark.parametrize(
    ("entry", "rule"),
    [
        ({**ONE, "shape": [10**12, 2, 2]}, "needs 16000000000000 bytes, but its `data_offsets` have 24"),
        ({**ONE, "shape": [2, 3.0]}, "must be an integer"),
        ({**ONE, "shape": [2, True]}, "must be an integer"),
        ({**ONE, "shape": [-2, -3]}, "must be an integer"),
        ({**ONE, "shape": ["2", "3"]}, "must be an integer"),
        ({**ONE, "shape": [10**30, 0]}, "must be an integer"),
        ({**ONE, "shape": {"2": 3}}, "must be a list"),
        ({**ONE, "shape": [1] * 9}, "must be a list of at most 8"),
        ({**ONE, "dtype": "F1"}, "the dtype of a tensor must be one of"),
        ({**ONE, "dtype": "x" * 5000}, "is 'xxxxxxxxxxxxxxxxxxxx'"),
        ({**ONE, "data_offsets": [0.0, 24.0]}, "must be two integers"),
        ({**ONE, "data_offsets": [4, 28]}, "none begins at byte 0"),
        ({**ONE, "shape": [2, 4], "data_offsets": [0, 32]}, "the tensors have 32 bytes, but the file has 24"),
    ],
)
def test_a_tensor_that_the_file_cannot_contain_is_rejected(entry: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule.replace("[", "\\[")):
        parse(safetensors({"a": entry}, 24))


@pytest.mark.parametrize("items", [b"[" + b"{}," * 200_000 + b"{}]", b"[" * 300_001, b"," * 300_001])
def test_the_items_of_a_header_are_counted_before_they_are_built(items: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda _: pytest.fail("the text must not be parsed"))
    with pytest.raises(ValueError, match="it may have at most 300000 of the characters"):
        parse(struct.pack("<Q", len(items)) + items)


def test_tensors_with_common_bytes_are_rejected() -> None:
    with pytest.raises(ValueError, match="must begin where another ends"):
        parse(safetensors({"a": ONE, "b": ONE}, 24))


@pytest.mark.parametrize("header", [[], {"a": []}, {"a": None}, {"a": {}}, {"": ONE}, {"a" * 257: ONE}])
def test_a_header_of_another_form_is_rejected(header: Any) -> None:
    content = json.dumps(header).encode()
    with pytest.raises((ValueError, TypeError, KeyError)):
        parse(struct.pack("<Q", len(content)) + content + bytes(24))


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, [], "", 0, {"x": {}}, {"x": None}, {"x": 1}])
def test_the_metadata_are_texts_as_in_the_library(metadata: Any) -> None:
    content = safetensors({"__metadata__": metadata, "a": ONE}, 24)
    try:
        load(content)
    except SafetensorError:
        with pytest.raises(ValueError, match="must be an object of texts"):
            parse(content)
    else:
        assert parse(content).metadata == (metadata or {})


@pytest.mark.parametrize("size", [0, limits.MAX_FILE_BYTES + 1, 1 << 63])
def test_the_length_of_a_header_is_checked_before_it_is_read(size: int) -> None:
    reads = list[int]()

    def read(start: int, size: int) -> bytes:
        reads.append(size)
        return struct.pack("<Q", announced)[start : start + size]

    announced = size
    with pytest.raises(ValueError, match="a safetensors header must have"):
        read_header(read, 1 << 40)
    assert sum(reads) < 1 << 20


def test_all_files_of_a_model_share_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    consumed = list[int]()

    def headers(each: int) -> Any:
        for number in range(100):
            consumed.append(number)
            yield Header({f"{number}": Tensor("F32", (each,), 0, 4 * each)}, 10)

    assert len(merge(headers(1))) == 100
    for name, value, rule in (
        ("MAX_HEADERS_BYTES", 25, "may have at most 25 bytes together"),
        ("MAX_TENSORS", 2, "may have at most 2 tensors"),
        ("MAX_PARAMETERS", 200, "may have at most 200 parameters"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(safetensors_header if name == "MAX_HEADERS_BYTES" else limits, name, value)
            consumed.clear()
            with pytest.raises(ValueError, match=rule):
                merge(headers(100))
        assert len(consumed) == 3, "no file is read after the limit is reached"


def test_a_malformed_folder_is_a_refused_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(safetensors({"a": {**ONE, "shape": [10**12, 2, 2]}}, 24))
    with pytest.raises(SourceError, match="no readable header") as caught:
        shapes(ModelSource("bomb", Kind.FOLDER, tmp_path, None, {}, None))
    assert caught.value.code == "model_refused"


def gguf(path: Path, tensors: int, shape: tuple[int, ...], *, keys: bytes = struct.pack("<Q", 0)) -> Path:
    one = struct.pack(f"<Q1sI{len(shape)}QIQ", 1, b"a", len(shape), *shape, 0, 0)
    path.write_bytes(b"GGUF" + struct.pack("<IQ", 3, tensors) + keys + one)
    return path


@pytest.mark.parametrize(
    ("tensors", "shape", "rule"),
    [
        (1, (10**12, 2, 2), "more values than the file can contain"),
        (1, (1,) * 20, "at most 8"),
        (1, (1 << 63,), "must be an integer"),
        (1 << 40, (2,), "at most 200000 tensors"),
    ],
)
def test_a_tensor_that_a_gguf_file_cannot_contain_is_rejected(
    tmp_path: Path, tensors: int, shape: tuple[int, ...], rule: str
) -> None:
    assert read_shapes(gguf(tmp_path / "good.gguf", 1, (2, 3))) == {"a": (3, 2)}
    with pytest.raises(ValueError, match=rule):
        read_shapes(gguf(tmp_path / "bad.gguf", tensors, shape))


def test_the_keys_and_texts_of_a_gguf_file_are_limited(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most 10000 keys"):
        read_shapes(gguf(tmp_path / "keys.gguf", 1, (2,), keys=struct.pack("<Q", 1 << 40)))
    texts = struct.pack("<QQ1sIIQ", 1, 1, b"k", 9, 8, 1 << 40)
    with pytest.raises(ValueError, match="array of 1099511627776 items"):
        read_shapes(gguf(tmp_path / "texts.gguf", 1, (2,), keys=texts))
