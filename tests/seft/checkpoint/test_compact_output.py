"""The output format compact: a container with the model of a checkpoint folder, verified against it."""

from pathlib import Path

import numpy as np
import pytest

from seft.checkpoint.compact.reader import open_container
from seft.checkpoint.formats import require_place, verify_format, write_format
from seft.checkpoint.outputs import new_file
from seft.config import OutputFormat, published_bytes
from seft.errors import ConfigError, VerifyError
from tests.seft.checkpoint.test_compact_format import safetensors

GENERATOR = np.random.default_rng(0)
ROWS, COLUMNS = 1024, 512
COMPACT = OutputFormat.COMPACT
BESIDE = {
    "README.md": b"card",
    "manifest.json": b"{}",
    "sparsity.json": b"{}",
    "LICENSE": b"terms",
    "model-Q8_0.gguf": b"GGUF",
    "model.seft": b"older",
}


def weights(zeros: float) -> bytes:
    """Return bfloat16 values of a normal distribution, of which the smallest ones are zero. Rows differ in scale."""
    scales = np.exp(0.5 * GENERATOR.standard_normal((ROWS, 1)))
    values = (scales * GENERATOR.standard_normal((ROWS, COLUMNS))).astype(np.float32)
    values[np.abs(values) < np.quantile(np.abs(values), zeros)] = 0
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model of two files and files of other formats."""
    (folder := tmp_path / "model").mkdir()
    tensors = {"a": ("BF16", [ROWS, COLUMNS], weights(0.6)), "b": ("F32", [3], bytes(12))}
    model = {
        "config.json": b'{"a": 1}',
        "model-00001-of-00002.safetensors": safetensors(tensors),
        "model-00002-of-00002.safetensors": safetensors({"c": ("BF16", [ROWS, COLUMNS], weights(0.0))}),
    }
    for name, content in {**model, **BESIDE}.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_file_has_the_model_and_nothing_else_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    write_format(folder, COMPACT, file := tmp_path / "small")
    verify_format(folder, file, COMPACT)
    with open_container(file) as container:
        container.expand(tmp_path / "expanded")
    expected = {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in BESIDE}
    assert {path.name: path.read_bytes() for path in (tmp_path / "expanded").iterdir()} == expected


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00002.safetensors"])
def test_the_verification_finds_every_difference(folder: Path, tmp_path: Path, name: str) -> None:
    write_format(folder, COMPACT, file := tmp_path / "small")
    path = folder / name
    content = path.read_bytes()
    changed = bytes([*content[:-1], content[-1] ^ 1])
    for other in (changed, content + b"0", content[:-1]):
        path.write_bytes(other)
        with pytest.raises(VerifyError, match=f"{name} in small must have"):
            verify_format(folder, file, COMPACT)
    path.unlink()
    with pytest.raises(VerifyError, match=f"must have the files of the model; {name} differs"):
        verify_format(folder, file, COMPACT)
    path.write_bytes(content)
    verify_format(folder, file, COMPACT)
    damaged = bytearray(file.read_bytes())
    damaged[5000] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(VerifyError, match=r"is damaged|must have the values of the folder"):
        verify_format(folder, file, COMPACT)


def test_a_file_in_the_folder_has_the_name_of_its_format(folder: Path) -> None:
    with pytest.raises(ConfigError, match="out must be outside of the model's folder"):
        require_place(folder, COMPACT, folder / "other.seft")
    (folder / "model.seft").unlink()
    require_place(folder, COMPACT, folder / "model.seft")
    with new_file(folder / "model.seft") as unfinished:
        write_format(folder, COMPACT, unfinished)
        verify_format(folder, unfinished, COMPACT)
    verify_format(folder, folder / "model.seft", COMPACT)


@pytest.mark.parametrize("zeros", [0.0, 0.3, 0.5, 0.6, 0.7, 0.9])
def test_the_estimated_size_is_above_that_of_the_file_but_by_less_than_a_quarter(zeros: float, tmp_path: Path) -> None:
    (folder := tmp_path / "model").mkdir()
    content = weights(zeros)
    (folder / "model.safetensors").write_bytes(safetensors({"a": ("BF16", [ROWS, COLUMNS], content)}))
    write_format(folder, COMPACT, file := tmp_path / "small")
    count = int(np.count_nonzero(np.frombuffer(content, np.uint16)))
    estimate = published_bytes([COMPACT], ROWS * COLUMNS, ROWS * COLUMNS - count)
    assert file.stat().st_size <= estimate <= 1.25 * file.stat().st_size
