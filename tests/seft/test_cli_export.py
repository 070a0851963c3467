"""The command `seft export`: a dense folder becomes one file of another format."""

import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from seft.checkpoint.compact.reader import open_container
from tests.seft.checkpoint.test_export import export_half_sparse
from tests.seft.test_cli import error_line, run_json


def test_a_folder_is_exported_as_a_file_that_keeps_its_zeros(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    export_half_sparse(pruned := tmp_path / "pruned")
    out = tmp_path / "model.gguf"
    exported = run_json(capsys, "export", pruned, "--format", "gguf_q8_0", out)
    assert exported == {"out": str(out), "format": "gguf_q8_0", "bytes": out.stat().st_size}
    dense, loaded = (
        AutoModelForCausalLM.from_pretrained(out.parent if name else pruned, gguf_file=name, dtype="float32")
        for name in (None, out.name)
    )
    for name, weight in dense.state_dict().items():
        assert not loaded.state_dict()[name][weight == 0].any(), name
    assert "out must be a file that does not exist yet" in error_line(
        capsys, "export", pruned, "--format", "gguf_q8_0", out
    )
    for format_, message in (
        ("gguf_q4_1", "Q4_1 has a minimum per block"),
        ("dense", "--format must be one of compact, compact_int8, "),
        ("compact8", "Did you mean compact?"),
    ):
        assert message in error_line(capsys, "export", pruned, "--format", format_, tmp_path / "other.gguf")
    assert {path.name for path in tmp_path.iterdir()} == {"model.gguf", "pruned"}


def test_a_model_that_gguf_cannot_express_is_refused_with_a_way_out_of_the_command(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"silu"', '"gelu"'))
    line = error_line(capsys, "export", folder, "--format", "gguf_q8_0", tmp_path / "out")
    assert "--format may contain GGUF only for a model with the activation silu; this one has 'hidden_act gelu'" in line
    assert line.rstrip().endswith("Use the format compact, or the folder itself.")


@pytest.mark.parametrize("format_", ["compact", "compact_int8", "gguf_bf16"])
def test_a_folder_with_a_damaged_file_is_not_exported(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, tmp_path: Path, format_: str
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "damaged")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1000])
    line = error_line(capsys, "export", folder, "--format", format_, tmp_path / "out")
    assert "model.safetensors must be a readable safetensors file" in line
    assert not (tmp_path / "out").exists()


def test_a_compact_file_is_written_into_its_own_folder_under_the_name_of_the_format(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    expected = {path.name for path in folder.iterdir()}
    assert "must be outside" in error_line(capsys, "export", folder, "--format", "compact", folder / "other")
    run_json(capsys, "export", folder, "--format", "compact", folder / "model.seft")
    with open_container(folder / "model.seft") as container:
        assert {file.name for file in container.files} == expected


@pytest.mark.parametrize("command", [["evaluate", "--data", "TEXT"], ["prune", "--sparsity", "0.5", "--out", "out"]])
def test_commands_that_read_no_compact_file_name_the_way_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "text.txt").write_text("text")
    (file := tmp_path / "model.seft").write_bytes(b"SEFTCOMP")
    words = [str(tmp_path / "text.txt") if word == "TEXT" else word for word in command]
    assert f"Restore its folder with `seft expand {file} FOLDER`" in error_line(capsys, *words, file)
