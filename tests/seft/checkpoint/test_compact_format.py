"""The compact container: a folder is restored bit for bit, by this library and by a reader of the document."""

import filecmp
import io
import json
import os
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seft.checkpoint.compact import chunk, index, reader
from seft.checkpoint.compact.byte_sources import LocalFile
from seft.checkpoint.compact.planes import Code
from seft.checkpoint.compact.reader import Container, open_container
from seft.checkpoint.compact.writer import pack, write
from seft.errors import ConfigError, ContainerError, SourceError
from seft.models.safetensors_header import BITS
from tests.seft.checkpoint.compact_reader import read_container
from tests.seft.checkpoint.test_folder import run

SMALL = 64
"""Values in a chunk in most tests, so that small tensors have several chunks."""
EXPECTED = {"a/b.txt": b"text", "config.json": b"{}", "empty": b""}


def safetensors(tensors: dict[str, tuple[str, list[int], bytes]], padding: str = "") -> bytes:
    """Return a safetensors file. `padding` follows its header. Many writers add spaces there."""
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = (json.dumps({"__metadata__": {"format": "pt"}, **header}) + padding).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values())


def fill(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def packed(files: dict[str, bytes], threads: int | None = None) -> bytes:
    """Return the container of a folder with these files."""
    with TemporaryDirectory() as name:
        fill(Path(name), files)
        write(Path(name), file := io.BytesIO(), threads=threads)
    return file.getvalue()


@contextmanager
def opened(content: bytes) -> Iterator[Container]:
    with TemporaryDirectory() as name:
        (path := Path(name) / "model.seft").write_bytes(content)
        with open_container(path) as container:
            yield container


def expanded(content: bytes) -> dict[str, bytes]:
    """Return the files that a container is expanded to."""
    with opened(content) as container, TemporaryDirectory() as name:
        container.expand(Path(name) / "out")
        return content_of(Path(name) / "out")


@st.composite
def contents(draw: st.DrawFn, dtype: str) -> tuple[str, list[int], bytes]:
    """Draw a tensor: empty, random bits, few different values, or mostly zeros. NaN and -0.0 occur."""
    shape = draw(st.lists(st.integers(0, 20), max_size=3))
    count = int(np.prod(shape, dtype=int))
    if count * BITS[dtype] % 8:
        shape, count = [8, *shape], count * 8
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    size = count * BITS[dtype] // 8
    values = generator.integers(0, 256, size, np.uint8)
    width = max(BITS[dtype] // 8, 1)
    match draw(st.sampled_from(["random", "few", "sparse", "weights", "negative zeros"])):
        case "few":
            values &= 3
        case "sparse":
            values.reshape(-1, width)[generator.random(size // width) < draw(st.floats(0, 1))] = 0
        case "weights" if dtype == "BF16":
            bits = generator.standard_normal(count).astype(np.float32).view(np.uint32) >> 16
            bits[generator.random(count) < draw(st.floats(0, 1))] = 0
            values = bits.astype(np.uint16).view(np.uint8)
        case "negative zeros":
            values[:] = 0
            values.reshape(-1, width)[:, -1] = 128
        case _:
            pass
    return dtype, shape, values.tobytes()


TENSOR = st.sampled_from(sorted(BITS)).flatmap(contents)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=9).filter(
    lambda name: name != "__metadata__"
)
FOLDERS = st.builds(
    lambda tensors, text, spaces: {
        **EXPECTED,
        "model.safetensors": safetensors(tensors, " " * spaces),
        "tokenizer.json": text,
    },
    st.dictionaries(NAMES, TENSOR, max_size=4),
    st.binary(max_size=300),
    st.integers(0, 8),
)


@settings(max_examples=150, deadline=None)
@given(FOLDERS)
@example({"half.safetensors": safetensors({"half a surrogate pair: \ud800": ("U8", [2], b"ab")})})
def test_any_folder_is_restored_bit_for_bit_by_both_readers(files: dict[str, bytes]) -> None:
    with patch.object(chunk, "VALUES", SMALL):
        content = packed(files)
        assert expanded(content) == files
        assert read_container(content, SMALL) == files


def test_large_tensors_have_several_chunks_and_every_code_of_planes() -> None:
    generator = np.random.default_rng(0)
    bits = (generator.standard_normal(chunk.VALUES + 77).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    dense, sparse = bits.copy(), np.where(generator.random(len(bits)) < 0.7, 0, bits).astype(np.uint16)
    sparse[5:8] = [0x8000, 0x7FC1, 1]  # -0.0, a NaN with a payload, the smallest subnormal
    tensors = {name: ("BF16", [len(bits)], data.tobytes()) for name, data in {"d": dense, "s": sparse}.items()}
    files = {"model.safetensors": safetensors(tensors)}
    content = packed(files)
    assert read_container(content) == files
    assert expanded(content) == files
    with opened(content) as container:
        d, s = next(file for file in container.files if file.name == "model.safetensors").tensors
        assert container.tensor(d).tobytes() == dense.tobytes()
        header = content[s.span.begin : s.span.begin + chunk.ALIGNMENT]
        assert header[44:47] == bytes([Code.ZSTD, Code.RAW, Code.PAIRS])
        first, second = (chunk.read(each.stored, each.size, s.part.values) for each in container._chunks(s.part))
        assert (first.total, second.total) == (chunk.VALUES, 77)
        assert first.mask is not None
        places = np.unpackbits(first.mask, bitorder="little").view(bool)
        assert np.array_equal(sparse[: chunk.VALUES][places], first.kept)


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F64"])
def test_each_byte_of_a_container_is_read_once(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk, "VALUES", SMALL)
    size = 1000 * BITS[dtype] // 8
    tensors = {"w": (dtype, [1000], np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes())}
    content, ranges, read = packed({"model.safetensors": safetensors(tensors)}), list[tuple[int, int]](), LocalFile.read

    def noted(self: LocalFile, begin: int, size: int) -> bytes:
        ranges.append((begin, begin + size))
        return read(self, begin, size)

    monkeypatch.setattr(LocalFile, "read", noted)
    for window in (100, 1000, 1 << 20):
        monkeypatch.setattr(reader, "WINDOW", window)
        ranges.clear()
        expanded(content)
        ranges.sort()
        assert [begin for begin, _ in ranges[1:]] == [end for _, end in ranges[:-1]]


def test_the_bytes_depend_on_the_files_alone() -> None:
    with patch.object(chunk, "VALUES", SMALL):
        files = {**EXPECTED, "model.safetensors": safetensors({"w": ("U8", [900], bytes(range(180)) * 5)})}
        first = packed(files, threads=1)
        assert packed(dict(reversed(files.items())), threads=7) == first


def test_a_damaged_weight_file_and_other_formats_are_stored_as_they_are() -> None:
    whole = safetensors({"w": ("F32", [2], bytes(8))})
    files = {"model.safetensors": whole[:-1], "pytorch_model.bin": b"\x80\x04", "adapter.safetensors": b""}
    assert expanded(packed(files)) == files


def test_a_folder_with_other_things_than_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a folder"):
        write(tmp_path / "none", io.BytesIO())
    with pytest.raises(ConfigError, match="must have files"):
        write(tmp_path, io.BytesIO())
    (tmp_path / "link").symlink_to("/")
    with pytest.raises(ConfigError, match=r"must have only files and folders; it is .*link"):
        write(tmp_path, io.BytesIO())


def test_packing_and_expanding_a_large_tensor_need_a_few_chunks_of_memory(tmp_path: Path) -> None:
    tensor, chunk_bytes = np.random.default_rng(0).integers(0, 1 << 16, 24 << 20, np.uint16), 2 << 20
    fill(
        folder := tmp_path / "model", {"model.safetensors": safetensors({"w": ("BF16", [24 << 20], tensor.tobytes())})}
    )
    del tensor
    tracemalloc.start()
    pack(folder, tmp_path / "model.seft", threads=2)
    with open_container(tmp_path / "model.seft") as container:
        container.expand(tmp_path / "out", threads=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * chunk_bytes < 48 << 20
    assert filecmp.cmp(folder / "model.safetensors", tmp_path / "out" / "model.safetensors", shallow=False)


def test_the_commands_pack_and_expand_need_no_torch(tiny_folder: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "tiny.seft", tmp_path / "out"
    no_container = ["expand", tiny_folder / "config.json", tmp_path / "other"]
    commands = [["pack", tiny_folder, file], ["expand", file, out], no_container]
    ended = run([[*map(str, words), "--json"] for words in commands])
    assert [code for code, _, _ in ended] == [0, 0, 2], ended
    first, second, third = (json.loads(output) for _, output, _ in ended)
    assert content_of(out) == content_of(tiny_folder)
    assert first["container"] == file.stat().st_size
    assert first["folder"] == second["folder"]
    assert third["error"]["code"] == "invalid_container"


def test_a_link_to_a_file_is_stored_as_the_file(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"content")
    (folder := tmp_path / "model").mkdir()
    (folder / "config.json").symlink_to("../blob")
    write(folder, file := io.BytesIO())
    assert expanded(file.getvalue()) == {"config.json": b"content"}


def test_pack_leaves_no_unfinished_file_and_replaces_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder := tmp_path / "model", EXPECTED)
    sizes = pack(folder, path := tmp_path / "model.seft")
    assert (path.stat().st_size, sum(map(len, EXPECTED.values()))) == sizes
    with pytest.raises(ConfigError, match="must be a file that does not exist yet"):
        pack(folder, path)
    with pytest.raises(ConfigError, match="outside of the folder"):
        pack(folder, folder / "model.seft")
    monkeypatch.setattr(index, "MAX_JSON_ITEMS", 3)
    with pytest.raises(ContainerError, match="has too many tensors"):
        pack(folder, tmp_path / "other.seft")
    assert {each.name for each in tmp_path.iterdir()} == {"model", "model.seft"}


def test_expand_needs_an_empty_folder_and_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "full", EXPECTED)
    with opened(packed(EXPECTED)) as container:
        with pytest.raises(ConfigError, match="new or an empty folder"):
            container.expand(tmp_path / "full")
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 5}))
        with pytest.raises(OSError, match="the folder needs 6 bytes and 5 are free"):
            container.expand(tmp_path / "new")
    assert content_of(tmp_path / "full") == EXPECTED
    assert not (tmp_path / "new").exists()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.seft"):
        LocalFile(tmp_path / "none.seft")


def test_a_folder_that_cannot_be_read_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model" / "inner").mkdir(parents=True)
    (tmp_path / "model" / "config.json").write_text("{}")
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("inner"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="inner"):
        pack(tmp_path / "model", tmp_path / "model.seft")
