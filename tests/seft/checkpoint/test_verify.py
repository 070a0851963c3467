"""Every kind of damage to a checkpoint is detected and named."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import seft
from seft import cli
from seft.checkpoint import verify as verification
from seft.checkpoint.facts import MANIFEST, canonical_json, manifest
from seft.checkpoint.verify import PACKAGE_ROOT, check, main, verify
from seft.errors import VerifierKilledError, VerifyError
from seft.exit_codes import Exit
from tests.waiting import alive, wait_for

VERIFY_IN_NEW_PROCESS = verification.verify_in_new_process
WEIGHTS = "model.safetensors"
Q = "model.layers.2.self_attn.q_proj.weight"


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy of the exported folder that a test may damage."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def forge_manifest(folder: Path) -> None:
    """Update the sizes and hashes to the present files."""
    (folder / MANIFEST).write_bytes(manifest(folder))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    forge_manifest(folder)


def edit_record(folder: Path, edit: Callable[[dict[str, dict[str, object]]], None]) -> None:
    record = json.loads((folder / "sparsity.json").read_bytes())
    edit(record)
    (folder / "sparsity.json").write_bytes(canonical_json(record))
    forge_manifest(folder)


@pytest.fixture
def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify in a new process, and not as `quick_verification` does."""
    monkeypatch.setattr(verification, "verify_in_new_process", VERIFY_IN_NEW_PROCESS)


@pytest.mark.usefixtures("new_process")
def test_an_intact_folder_passes_in_a_separate_process(exported: Path) -> None:
    verify(exported)


def test_the_separate_process_imports_this_package() -> None:
    assert (PACKAGE_ROOT / "seft" / "__init__.py").samefile(seft.__file__)


def test_an_error_of_several_lines_is_reported_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seft.checkpoint.verify.message_of", lambda *_: "some weights\n  are missing:\n\tup_proj")
    with pytest.raises(SystemExit, match=r"^some weights are missing: up_proj$"):
        main()


@pytest.mark.usefixtures("new_process")
def test_damage_is_reported_by_the_separate_process(folder: Path) -> None:
    (folder / "README.md").unlink()
    with pytest.raises(VerifyError, match=r"README\.md must have the"):
        verify(folder)


@pytest.mark.usefixtures("new_process")
def test_a_separate_process_that_is_killed_is_reported_as_such(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "killed"
    program.write_text("#!/bin/sh\necho a warning >&2\nkill -9 $$\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(VerifierKilledError, match="was killed"):
        verify(folder)


def test_the_command_finds_a_changed_byte_of_every_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(folder)]) == Exit.DONE
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
    assert f"{folder} has the {len(names)} files of its manifest.json" in capsys.readouterr().out
    for name in names:
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)
        assert cli.main(["verify", str(folder)]) == Exit.FAILED
        assert f"error: {name} must have the (size, sha256) of manifest.json" in capsys.readouterr().err
        content[-1] ^= 1
        (folder / name).write_bytes(content)
    (folder / MANIFEST).unlink()
    assert cli.main(["verify", str(folder), "--json"]) == Exit.FAILED
    assert "must contain a readable manifest.json" in json.loads(capsys.readouterr().out)["error"]["message"]


# Runs in a process of its own: a copy of a process that torch has computed in, such as one of tests, may fail or hang.
STANDBY = """
import os, signal, subprocess, sys
from pathlib import Path
from local.processes import children_of
from seft.checkpoint import verify as module
from seft.checkpoint.verify import standby, verify
from seft.errors import VerifyError

def refused(folder, message):
    try:
        verify(folder)
    except VerifyError as error:
        assert message in str(error), error
    else:
        raise AssertionError("the folder passed")

def new_process(*_, **__):
    raise AssertionError("a new process was started")

intact, damaged = Path(sys.argv[1]), Path(sys.argv[2])
subprocess.run = new_process
"""


def test_a_process_that_waits_verifies_one_folder_and_ends(exported: Path, folder: Path) -> None:
    (folder / "README.md").unlink()
    script = """
with standby():
    assert len(children_of(os.getpid())) == 1
    verify(intact)
    try:
        verify(intact)
    except AssertionError:
        pass
    else:
        raise AssertionError("the process verified a second folder")
with standby():
    module.check = lambda _: None  # a later state must hide nothing
    refused(damaged, "README.md must have the")
with standby():
    pass
assert not children_of(os.getpid())
with standby():
    (process,) = children_of(os.getpid())
    os.kill(process, signal.SIGKILL)
    refused(intact, "was killed")
"""
    subprocess.run([sys.executable, "-c", STANDBY + script, str(exported), str(folder)], check=True)


def test_a_command_verifies_in_a_copy_of_its_process(tiny_folder: Path, tmp_path: Path) -> None:
    script = "import subprocess, sys; from seft.cli import main; subprocess.run = None; sys.exit(main(sys.argv[1:]))"
    command = ["prune", tiny_folder, "--sparsity", "0.5", "--method", "magnitude", "--out", tmp_path / "out"]
    several_threads = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", script, *map(str, command)], env=several_threads, check=True)


def test_a_process_that_waits_keeps_no_file_open_and_ends_with_its_parent() -> None:
    script = """
import os, sys, time
from pathlib import Path
from seft.checkpoint.verify import standby
with standby():
    print(*Path("/proc/self/task").joinpath(str(os.getpid()), "children").read_text().split(), flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        (waiting,) = parent.stdout.readline().split()
        parent.kill()
        assert parent.stdout.read() == "", "the copy has closed it, so the pipe ends with its parent"
    wait_for(lambda: not alive(int(waiting)))


def test_a_flipped_bit_is_detected(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    with pytest.raises(VerifyError, match=WEIGHTS):
        check(folder)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json", "sparsity.json"])
def test_a_missing_file_is_detected(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(VerifyError, match=name):
        check(folder)


def test_a_folder_without_manifest_is_incomplete(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    with pytest.raises(VerifyError, match=MANIFEST):
        check(folder)


def test_an_extra_file_is_detected(folder: Path) -> None:
    (folder / "modeling.py").write_text("print('hello')")
    with pytest.raises(VerifyError, match=r"modeling\.py"):
        check(folder)


def test_a_wrong_count_is_detected(folder: Path) -> None:
    def edit(record: dict[str, dict[str, object]]) -> None:
        record["sparsity"]["model"] = {"zeros": 1, "weights": 197184}

    edit_record(folder, edit)
    with pytest.raises(VerifyError, match="model must have the zeros"):
        check(folder)


def test_a_record_without_its_parts_is_detected(folder: Path) -> None:
    def edit(record: dict[str, dict[str, object]]) -> None:
        del record["fingerprint"]

    edit_record(folder, edit)
    with pytest.raises(VerifyError, match="fingerprint"):
        check(folder)


def test_a_wrong_token_in_the_fingerprint_is_detected(folder: Path) -> None:
    def edit(record: dict[str, dict[str, Any]]) -> None:
        record["fingerprint"]["tokens"][-1] += 1

    edit_record(folder, edit)
    with pytest.raises(VerifyError, match="log-probabilities"):
        check(folder)


def test_a_missing_norm_is_detected(folder: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]

    edit_weights(folder, edit)
    with pytest.raises(VerifyError, match="model must have the zeros"):
        check(folder)


def test_a_renamed_tensor_is_detected(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"model.nrom.weight": tensors.pop("model.norm.weight")}))
    with pytest.raises(VerifyError, match=r"'missing_keys': \['model\.norm\.weight'\]"):
        check(folder)


@pytest.mark.parametrize("name", [Q, "model.norm.weight", "model.layers.0.input_layernorm.weight"])
def test_one_wrong_weight_is_detected_even_with_correct_hashes(folder: Path, name: str) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[2] *= -30

    edit_weights(folder, edit)
    with pytest.raises(VerifyError, match="log-probabilities"):
        check(folder)


def test_weights_that_are_not_finite_are_detected(folder: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q].view(-1)[2] = torch.nan

    edit_weights(folder, edit)
    with pytest.raises(VerifyError, match="must be finite"):
        check(folder)


def test_a_group_that_violates_its_pattern_is_detected(folder: Path) -> None:
    def edit(record: dict[str, dict[str, object]]) -> None:
        record["facts"]["prune"] = {"sparsity": 0.5, "pattern": "2:4"}

    def swap(tensors: dict[str, torch.Tensor]) -> None:
        row = tensors[Q][1]
        row[0], row[7] = 0.5, 0.0

    edit_record(folder, edit)
    check(folder)
    edit_weights(folder, swap)
    with pytest.raises(VerifyError, match=r"q_proj must have at most 2 nonzeros in every 4 inputs; 1 groups have more"):
        check(folder)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            {"prune": {"sparsity": 0.501, "method": "magnitude", "allocation": "owl"}},
            r"linears must have a fraction of zeros of 0\.50",
        ),
        ({"prune": {"sparsity": 0.5, "sparsity_of": "model"}}, r"model must have a fraction of zeros of 0\.49"),
        (
            {"prune": {"sparsity": 0.501, "method": "magnitude"}, "zeros_found": True},
            r"linears must have a fraction of zeros of 0\.50",
        ),
    ],
)
def test_distributed_zeros_are_counted_together(folder: Path, facts: dict[str, object], message: str) -> None:
    edit_record(folder, lambda record: record["facts"].update(facts))
    with pytest.raises(VerifyError, match=message):
        check(folder)


def test_rows_may_have_one_zero_less_as_in_checkpoints_of_earlier_versions(folder: Path) -> None:
    def edit(record: dict[str, dict[str, object]]) -> None:
        record["facts"]["prune"] = {"sparsity": 0.505, "method": "wanda"}

    edit_record(folder, edit)
    check(folder)


@pytest.mark.parametrize(("method", "share"), [("wanda", 94 / 160), ("magnitude", 6041 / 10240)])
def test_a_layer_over_its_budget_is_detected(folder: Path, method: str, share: float) -> None:
    def edit(record: dict[str, dict[str, object]]) -> None:
        record["facts"]["prune"] = {"sparsity": 0.59, "method": method}

    edit_record(folder, edit)
    with pytest.raises(VerifyError, match=f"must have a fraction of zeros of {share:.6f}"):
        check(folder)
