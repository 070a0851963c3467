"""The command `seft export`: a dense folder becomes one file of another format."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

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
        ("dense", "The folder is dense already"),
        ("compact8", "--format must be one of dense, compact, "),
        ("compact8", "Did you mean compact?"),
    ):
        assert message in error_line(capsys, "export", pruned, "--format", format_, tmp_path / "other.gguf")
    assert {path.name for path in tmp_path.iterdir()} == {"model.gguf", "pruned"}
