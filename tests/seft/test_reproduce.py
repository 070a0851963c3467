"""`seft reproduce` makes a checkpoint again with the same bits, and refuses other inputs by their names."""

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from seft.checkpoint.facts import Facts, Record, canonical_json
from seft.cli import main
from seft.errors import SourceError
from seft.models import source
from seft.models.source import ModelSource
from seft.reproduce import COPIED

DETERMINED = {
    *("base", "teacher", "prune", "repair", "scores", "grown_zeros", "calibration_sha256", "stopped_at", "kept_at"),
    *("peak_rate", "zeros_found", "pruned_on", "repaired_on", "attempts"),
}
"""Facts that a reproduction determines again: it measures them, or checks them before it begins."""
TRAINING = ["--steps", "2", "--batch-tokens", "192", "--sequence-tokens", "96", "--density", "0.02"]
CALIBRATION = ["--samples", "4", "--tokens", "96", "--prune-method", "wanda"]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, texts: Path) -> Path:
    out = tmp_path_factory.mktemp("made") / "first"
    learning = ["--distill-weight", "0.5", "--retain", "none", "--device", "cpu"]
    command = ["compress", tiny_folder, "--data", texts, "--sparsity", "0.6", *CALIBRATION, *TRAINING, *learning]
    assert run(*command, "--out", out) == 0
    return out


def test_the_recipe_gives_the_same_bytes_again_and_a_changed_result_is_named(
    made: Path, tiny_folder: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = ["--model", tiny_folder, "--data", texts]
    assert run("reproduce", made / "sparsity.json", *inputs, "--out", tmp_path / "again", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["same"], answer["changes"]) == (True, [])
    manifests = [(folder / "manifest.json").read_bytes() for folder in (made, tmp_path / "again")]
    assert manifests[0] == manifests[1], "the documents are the same too"


def test_held_out_records_are_left_out_of_the_other_texts_also_when_the_recipe_is_run_again(
    tiny_folder: Path, texts: Path, tmp_path: Path
) -> None:
    lines = texts.read_text().splitlines(keepends=True)
    parts = {"judged": lines[:3], "training": lines[3:], "all_kept": lines[2:12], "kept": lines[3:12]}
    files = {name: tmp_path / f"{name}.jsonl" for name in parts}
    for name, part in parts.items():
        files[name].write_text("".join(part))

    def given(data: Path, kept: Path) -> list[object]:
        return ["--data", data, "--retain-data", kept, "--held-out", files["judged"]]

    def counts(out: Path) -> dict[str, int]:
        found = Record.read(out).facts.texts
        return {role: found[role].records for role in ("calibration", "dataset", "held_out")}

    both, apart = given(texts, files["all_kept"]), given(files["training"], files["kept"])
    learning = ["--evaluate-interval", "1", "--retain", "dataset", "--retain-tokens", "384", "--device", "cpu"]
    learning += TRAINING
    for name, options in (("both", both), ("apart", apart)):
        command = ["compress", tiny_folder, "--sparsity", "0.6", *CALIBRATION, *learning, *options]
        assert run(*command, "--out", tmp_path / name) == 0
        assert counts(tmp_path / name) == {"calibration": 17, "dataset": 17, "held_out": 3}
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("both", "apart")]
    assert weights[0] == weights[1]
    sizes = ["--calibration", texts, "--samples", "4", "--tokens", "96", "--method", "wanda"]
    assert run("prune", tiny_folder, "--sparsity", "0.6", *sizes, "--out", tmp_path / "pruned", "--device", "cpu") == 0
    assert (
        run("repair", tmp_path / "pruned", "--teacher", tiny_folder, *learning, *both, "--out", tmp_path / "two") == 0
    )
    assert counts(tmp_path / "two") == {"calibration": 20, "dataset": 17, "held_out": 3}
    for name in ("both", "two"):
        command = ["reproduce", tmp_path / name / "sparsity.json", "--model", tiny_folder, *both]
        assert run(*command, "--out", tmp_path / f"{name}-again") == 0


def test_each_fact_is_determined_again_or_copied() -> None:
    new = {field.name for field in fields(Facts)} - DETERMINED - set(COPIED)
    assert not new, "add these to COPIED in seft/reproduce.py, or to DETERMINED here"


def _changed(folder: Path, name: str, out: Path) -> Path:
    """Return a copy of a folder in which the last byte of a file is another one."""
    shutil.copytree(folder, out)
    content = bytearray((out / name).read_bytes())
    content[-1] ^= 1
    (out / name).write_bytes(content)
    return out


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_config.json"])
def test_a_changed_byte_of_the_model_is_refused_with_the_name_of_the_file(
    name: str, made: Path, tiny_folder: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_folder, model := made.parent / f"changed-{name}")
    content = (model / name).read_bytes()
    changed = content[:-1] + bytes([content[-1] ^ 1]) if name.endswith(".safetensors") else content + b"\n"
    (model / name).write_bytes(changed)
    command = ["reproduce", made / "sparsity.json", "--model", model, "--data", texts, "--out", made.parent / "refused"]
    assert run(*command) == 2
    assert f"these files have another SHA-256 than recorded: {name}." in capsys.readouterr().err
    assert not (made.parent / "refused").exists()


def test_other_text_and_missing_inputs_are_refused_with_their_names(
    made: Path, tiny_folder: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (other := tmp_path / "other.jsonl").write_text(texts.read_text().replace("a", "b", 1))
    command = ["reproduce", made / "sparsity.json", "--out", tmp_path / "out"]
    for given, message in (
        (["--model", tiny_folder, "--data", other], "other.jsonl must have the recorded SHA-256"),
        (["--model", tiny_folder], "the text 'topics.jsonl' must be given"),
        (["--data", texts], f"the model '{tiny_folder.name}' must be given"),
    ):
        assert run(*command, *given) == 2
        assert message in capsys.readouterr().err


def test_a_record_without_hashes_and_a_missing_manifest_are_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Record.read(made).data()
    del data["facts"]["base"]["files"], data["facts"]["pruned_on"]
    (tmp_path / "sparsity.json").write_bytes(canonical_json(data))
    command = ["reproduce", tmp_path / "sparsity.json", "--out", tmp_path / "out"]
    assert run(*command) == 2
    assert "manifest.json must be in the folder of sparsity.json" in capsys.readouterr().err
    shutil.copy(made / "manifest.json", tmp_path)
    assert run(*command) == 2
    assert "an older version of seft wrote it" in capsys.readouterr().err


def test_another_result_ends_with_1_and_names_the_files_and_tensors(
    made: Path, tiny_folder: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "recorded"
    shutil.copytree(made, record)
    data = Record.read(made).data()
    data["facts"]["repair"]["steps"], data["facts"]["repair"]["learning_rate"] = 1, 0.5
    data["versions"]["torch"], data["facts"]["pruned_on"]["hardware"] = "1.0", "another CPU"
    data["facts"]["repaired_on"]["processes"] = 2
    data["facts"]["pruned_on"].pop("processes")  # as in a record of an older version
    attempt = {"machine": data["facts"]["pruned_on"], "micro_batch": 2, "versions": data["versions"]}
    data["facts"]["attempts"] = [attempt, {**attempt, "micro_batch": 1}]
    (record / "sparsity.json").write_bytes(canonical_json(data))
    inputs = ["--model", tiny_folder, "--data", texts]
    assert run("reproduce", record / "sparsity.json", *inputs, "--out", tmp_path / "again") == 1
    line = capsys.readouterr().err
    assert "these files differ: model.safetensors (tensors: model." in line
    assert "torch was 1.0 and is" in line
    assert "repair ran in 2 processes" in line
    again, before = (Record.read(folder).facts for folder in (tmp_path / "again", made))
    assert (again.pruned_on, again.repaired_on) == (before.pruned_on, before.repaired_on), "this machine"
    assert "micro_batch changed from 2 to 1 when the job was resumed" in line


def test_a_foreign_record_names_no_path_and_no_other_machine_and_every_text(
    made: Path, tiny_folder: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def outside(facts: dict[str, Any]) -> None:
        facts["texts"]["calibration"]["name"] = facts["texts"]["dataset"]["name"] = str(texts)

    def model_outside(facts: dict[str, Any]) -> None:
        facts["base"]["reference"] = str(tiny_folder)

    def unnamed(facts: dict[str, Any]) -> None:
        facts["evaluate"], facts["held_out_share"] = {"windows": 2, "tokens": 96}, None

    record = tmp_path / "recorded"
    for change, given, message in (
        (outside, ["--model", tiny_folder], "must be given; it is not in this folder"),
        (model_outside, ["--data", texts], "must be given; it is not in this folder"),
        (unnamed, ["--model", tiny_folder, "--data", texts], "it has none for held_out"),
        (lambda facts: facts["pruned_on"].update(dtype="load"), [], "facts.pruned_on.dtype is wrong"),
        (lambda facts: facts["pruned_on"].update(threads=0), [], "facts.pruned_on.threads is wrong"),
        (lambda facts: facts["texts"].update(other=facts["texts"]["dataset"]), [], "is wrong: Input should be"),
    ):
        shutil.copytree(made, record, dirs_exist_ok=True)
        data = Record.read(made).data()
        change(data["facts"])
        (record / "sparsity.json").write_bytes(canonical_json(data))
        assert run("reproduce", record / "sparsity.json", *given, "--out", tmp_path / "out") == 2
        assert message in capsys.readouterr().err
    assert run("reproduce", record / "sparsity-v1.json", "--out", tmp_path / "out") == 2
    assert "the record must be a file named sparsity.json" in capsys.readouterr().err


def test_a_model_of_the_hub_is_not_taken_from_a_local_folder_of_its_name(
    made: Path, tiny_folder: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made, record := tmp_path / "recorded")
    data = Record.read(made).data()
    data["facts"]["base"] |= {"reference": "owner/model", "kind": "hub", "revision": "c0ffee"}
    (record / "sparsity.json").write_bytes(canonical_json(data))
    shutil.copytree(tiny_folder, tmp_path / "owner" / "model")
    monkeypatch.chdir(tmp_path)
    asked: list[tuple[str, str | None]] = []

    def ask(reference: str, revision: str | None) -> ModelSource:
        asked.append((reference, revision))
        raise SourceError("model_not_found", "the hub was asked")

    monkeypatch.setattr(source, "find_on_hub", ask)
    assert run("reproduce", record / "sparsity.json", "--data", texts, "--out", tmp_path / "out") == 2
    assert asked == [("owner/model", "c0ffee")]
