"""A damaged or forged container gives an error that names the tensor: never a crash, wrong weights or much memory."""

import hashlib
import json
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from backports import zstd
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seft.checkpoint.compact import index
from seft.errors import ContainerError
from tests.seft.checkpoint.test_compact_format import expanded, opened, packed, safetensors

Index = dict[str, Any]
GENERATOR = np.random.default_rng(0)
WEIGHTS = (GENERATOR.standard_normal(3000).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
SPARSE = np.where(GENERATOR.random(3000) < 0.6, 0, WEIGHTS).astype(np.uint16)
TENSORS = {
    "dense": ("BF16", [30, 100], WEIGHTS.tobytes()),
    "sparse": ("BF16", [30, 100], SPARSE.tobytes()),
    "empty": ("F32", [0, 3], b""),
    "bytes": ("U8", [200], bytes(range(100)) * 2),
}
FILES = {"config.json": b'{"a": 1}' * 9, "model.safetensors": safetensors(TENSORS), "tokenizer.json": b"tokens" * 40}
WHOLE = packed(FILES)
BEGIN, SIZE = struct.unpack_from("<QQ", WHOLE, len(WHOLE) - index.FOOTER_BYTES)
INDEX: Index = json.loads(WHOLE[BEGIN : BEGIN + SIZE])
PARTS = [part for file in INDEX["files"] for part in (file, *file["tensors"])]
ODD: list[Any] = [
    0,
    1,
    -1,
    63,
    2**31,
    2**63,
    10**30,
    1.5,
    True,
    None,
    "",
    "x",
    [],
    {},
    [2**40, 2**40],
    "../x",
    "/x",
    "dense",
]


def forged(change: Callable[[Index], None], content: bytes = WHOLE[:BEGIN]) -> bytes:
    """Return a container whose index was changed, and whose footer fits the index."""
    change(data := json.loads(json.dumps(INDEX)))
    text = json.dumps(data).encode()
    return content + text + index.pack_footer(text, len(content))


def attempt(content: bytes) -> dict[str, bytes] | str:
    """Return the files of a container, or the message of the error."""
    try:
        return expanded(content)
    except ContainerError as error:
        return str(error)


def in_files(number: int, **values: object) -> Callable[[Index], None]:
    return lambda data: data["files"][number].update(values)


def in_tensors(number: int, **values: object) -> Callable[[Index], None]:
    return lambda data: data["files"][1]["tensors"][number].update(values)


def part_at(byte: int) -> str | None:
    """Return the name of the tensor or file whose record has a byte of the container."""
    return next((part["name"] for part in PARTS if part["begin"] <= byte < part["end"]), None)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(WHOLE) - 1))
@example(10)
def test_a_truncated_container_is_refused(size: int) -> None:
    with pytest.raises(ContainerError, match=r"is not an intact compact container: .*Download the file again"):
        expanded(WHOLE[:size])


def test_a_container_of_a_later_version_is_refused() -> None:
    later = bytearray(WHOLE)
    struct.pack_into("<I", later, len(WHOLE) - 16, 2)
    with pytest.raises(ContainerError, match="the version of the format must be 1; it is 2"):
        expanded(bytes(later))
    struct.pack_into("<I", later, 8, 2)
    later[-64:-16] = bytes(48)  # a later version may have another footer
    with pytest.raises(ContainerError, match=r"must have version 1 .* has version 2\. Read it with a newer seft"):
        expanded(bytes(later))


@settings(max_examples=250, deadline=None)
@given(st.integers(0, 8 * len(WHOLE) - 1))
def test_a_flipped_bit_gives_an_error_with_the_name_or_changes_nothing(bit: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[bit // 8] ^= 1 << bit % 8
    match attempt(bytes(damaged)):
        case str(message):
            name = part_at(bit // 8)
            assert message.startswith(f"{name!r} in " if name else "/")
        case files:
            assert files == FILES


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=100))
def test_overwritten_bytes_never_give_other_weights(begin: int, content: bytes) -> None:
    damaged = (WHOLE[:begin] + content + WHOLE[begin + len(content) :])[: max(len(WHOLE), begin + len(content))]
    assert isinstance(files := attempt(damaged), str) or files == FILES


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_forged_index_gives_an_error_or_the_same_contents(data: st.DataObject) -> None:
    def change(forged: Index) -> None:
        places = [forged, *forged["files"], *forged["files"][1]["tensors"]]
        for place in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=3)):
            place[data.draw(st.sampled_from(sorted(place)))] = data.draw(st.sampled_from(ODD))

    files = attempt(forged(change))
    assert isinstance(files, str) or sorted(files.values()) == sorted(FILES.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_tensors(0, shape=[2**20, 2**20]), "'dense' with 2199023255552 bytes must begin at"),
        (
            in_tensors(0, shape=[2**60, 2**60]),
            "each size of a shape must be an integer from 0 to 10000000000000; 'dense'",
        ),
        (in_tensors(2, shape=[2**40, 0, 2**40]), "header of 'model.safetensors' in .* must describe"),
        (in_tensors(0, dtype="F128"), "its dtype one of safetensors; the tensor 'dense' has the dtype 'F128'"),
        (in_tensors(0, dtype="F16"), "must describe the tensors of the index; 'dense' differs"),
        (in_tensors(0, name="other"), "must describe the tensors of the index; '(dense|other)' differs"),
        (in_tensors(1, sha256="0" * 64), "'sparse' in .* is damaged: its SHA-256 must be 0000"),
        (in_tensors(1, begin=64), "'sparse' with 6000 bytes must begin at"),
        (in_tensors(1, name="dense"), "tensors of 'model.safetensors' must have different names"),
        (in_files(0, sha256="0" * 64), "'config.json' in .* is damaged: its SHA-256 must be 0000"),
        (in_files(0, own_bytes=10**12), "'config.json' with 1000000000000 bytes must begin at"),
        (in_files(0, name="../config.json"), "must be a path inside the folder; one is '../config.json'"),
        (in_files(0, name="/etc/passwd"), "must be a path inside the folder; one is '/etc/passwd'"),
        (in_files(0, name="\ud800"), "the index is malformed|surrogates not allowed"),
        (in_files(0, name="x" * 256), "at most 255 bytes"),
        (in_files(0, name="/".join("x" * 17)), "may have at most 16 parts; 'x/x/.*' has 17"),
        (in_files(0, name=""), "must be a text of 1 to 1024 characters"),
        (in_files(0, name="a\\b"), r"must have no backslash and no NUL; one is 'a\\\\b'"),
        (in_files(0, name="tokenizer.json"), "must have different names, and none may have the name of a folder"),
        (in_files(0, name="tokenizer.json/x"), "must have different names, and none may have the name of a folder"),
        (lambda data: data.pop("files"), "the index is malformed"),
        (lambda data: data.update(files=[[]] * 10**6), "may have at most 300000"),
    ],
)
def test_absurd_claims_are_refused(change: Callable[[Index], None], message: str) -> None:
    with pytest.raises(ContainerError, match=message):
        expanded(forged(change))


def test_a_small_container_cannot_claim_a_huge_folder() -> None:
    record = b"".join(struct.pack("<II36x9x11x", 1 << 20, 0) for _ in range(1100))

    def change(data: Index) -> None:
        end = BEGIN + len(record)
        data["files"].append(
            {"name": "x", "own_bytes": 1100 << 20, "begin": BEGIN, "end": end, "sha256": "", "tensors": []}
        )

    with pytest.raises(ContainerError, match="may have a folder of at most 1073741824 bytes"):
        expanded(forged(change, WHOLE[:BEGIN] + record))


def test_a_plane_that_decompresses_to_much_more_is_refused_without_the_memory() -> None:
    bomb = zstd.compress(bytes(1 << 28))
    lengths = [0, len(bomb), len(bomb), *[0] * 6]
    chunk = struct.pack("<II9I9B11x", 3000, 3000, *lengths, 0, 1, 2, *[0] * 6)
    chunk += 2 * (bomb + bytes(-len(bomb) % 64))
    with patch.object(index, "most_bytes", lambda *_: 1 << 30):
        content = replaced(1, "dense", chunk)
        tracemalloc.start()
        with pytest.raises(ContainerError, match=r"'dense' in .* is damaged: a plane must be one whole zstd frame"):
            expanded(content)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize(
    ("values", "kept", "mask", "message"),
    [
        (8, 8, None, "a chunk must have 3000 values here; one has 8"),
        (3000, 3001, None, "the header of a chunk has impossible numbers"),
        (3000, 2, bytes(375), "a mask must have 2 bits that are 1"),
        (3000, 2, bytes([3]), "a plane must have 375 bytes; one has 1"),
    ],
)
def test_a_forged_chunk_is_refused(values: int, kept: int, mask: bytes | None, message: str) -> None:
    planes = [mask or b"", bytes(kept), bytes(kept)]
    chunk = struct.pack("<II9I9B11x", values, kept, *map(len, planes), *[0] * 15)
    chunk += b"".join(plane + bytes(-len(plane) % 64) for plane in planes)
    with pytest.raises(ContainerError, match=rf"'dense' in .* is damaged: {message}"):
        expanded(replaced(1, "dense", chunk))


@pytest.mark.parametrize("number", [0, 3, 8])
def test_a_plane_that_a_chunk_does_not_have_must_be_empty(number: int) -> None:
    lengths = [0, 3000, 3000, *[0] * 6]
    lengths[number] = 64
    chunk = struct.pack("<II9I9B11x", 3000, 3000, *lengths, *[0] * 9)
    chunk += b"".join(bytes(length + -length % 64) for length in lengths)
    with pytest.raises(ContainerError, match=r"'dense' in .* a plane that a chunk does not have must have 0"):
        expanded(replaced(1, "dense", chunk))


def test_a_record_with_bytes_after_its_last_chunk_is_refused() -> None:
    dense = INDEX["files"][1]["tensors"][0]
    record = WHOLE[dense["begin"] : dense["end"]]
    assert expanded(replaced(1, "dense", record, dense["sha256"])) == FILES
    with pytest.raises(ContainerError, match=r"'dense' in .* is damaged: it has 64 bytes after its last chunk"):
        expanded(replaced(1, "dense", record + bytes(64), dense["sha256"]))


def replaced(file: int, name: str, record: bytes, sha256: str = hashlib.sha256().hexdigest()) -> bytes:
    """Return a container with another record of a tensor. All places in the index fit."""
    old = next(tensor for tensor in INDEX["files"][file]["tensors"] if tensor["name"] == name)
    shift = len(record) - (old["end"] - old["begin"])

    def change(data: Index) -> None:
        for part in (part for each in data["files"] for part in (each, *each["tensors"])):
            part["begin"] += shift if part["begin"] > old["begin"] else 0
            part["end"] += shift if part["end"] > old["begin"] else 0
            if part["name"] == name:
                part["sha256"] = sha256

    return forged(change, WHOLE[: old["begin"]] + record + WHOLE[old["end"] : BEGIN])


def test_a_damaged_tensor_does_not_prevent_reading_the_others() -> None:
    with opened(bytes(WHOLE)) as whole:
        dense, sparse, *_ = next(file for file in whole.files if file.name == "model.safetensors").tensors
    damaged = bytearray(WHOLE)
    damaged[dense.span.end - 65] ^= 1
    with opened(bytes(damaged)) as container:
        assert container.tensor(sparse).tobytes() == SPARSE.tobytes()
        with pytest.raises(ContainerError, match="'dense' in"):
            container.tensor(dense)
