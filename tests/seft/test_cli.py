"""The command line: a complete run on the tiny model, JSON output and errors."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from seft.checkpoint import sparsity
from seft.checkpoint.facts import Record, sha256
from seft.cli import main
from seft.config import Pattern, RateSchedule, Retain


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, texts: Path) -> Path:
    out = tmp_path_factory.mktemp("checkpoints") / "pruned"
    options = ["--calibration", texts, "--samples", "16", "--tokens", "96", "--calibration-order", "sequential"]
    assert run("prune", tiny_folder, "--sparsity", "0.6", "--allocation", "uniform", *options, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def repaired(pruned: Path, texts: Path) -> Path:
    out = pruned.parent / "repaired"
    options = ["--steps", "20", "--density", "0.02", "--update-interval", "5", "--learning-rate", "1e-2"]
    sizes = ["--batch-tokens", "768", "--sequence-tokens", "96", "--micro-batch", "8"]
    assert run("repair", pruned, "--data", texts, *options, *sizes, "--out", out) == 0
    return out


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """Run a command and return the JSON object that it prints."""
    capsys.readouterr()
    run(*arguments, "--json")
    data = json.loads(capsys.readouterr().out)
    assert isinstance(data, dict)
    return data


def perplexity(capsys: pytest.CaptureFixture[str], model: Path, texts: Path) -> float:
    command = ["evaluate", model, "--data", texts, "--tokens", "96", "--windows", "32"]
    return float(run_json(capsys, *command)["perplexity"])


def test_pruning_raises_the_perplexity_and_repair_lowers_it(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, pruned: Path, repaired: Path, texts: Path
) -> None:
    dense, broken, healed = (perplexity(capsys, model, texts) for model in (tiny_folder, pruned, repaired))
    assert dense < healed < broken


def test_repair_keeps_the_budget_of_every_layer_and_grows_zeros(pruned: Path, repaired: Path) -> None:
    before, after = sparsity.of_folder(pruned), sparsity.of_folder(repaired)
    assert all(after.layers[name].zeros >= count.zeros for name, count in before.layers.items())
    assert Record.read(repaired).facts.grown_zeros > 0


def test_the_record_has_both_texts_and_both_configurations(pruned: Path, repaired: Path, texts: Path) -> None:
    first, second = Record.read(pruned).facts, Record.read(repaired).facts
    assert first.repair is None
    assert first.dataset_sha256 is None
    assert first.prune == second.prune
    assert second.repair
    assert second.repair.steps == 20
    assert second.dataset_sha256 == second.calibration_sha256 == sha256(texts)


def test_the_folder_generates_with_plain_transformers(repaired: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(repaired), AutoTokenizer.from_pretrained(repaired)
    prompt = tokenizer("The statement", return_tensors="pt")
    text = tokenizer.decode(model.generate(**prompt, max_new_tokens=8, do_sample=False)[0])
    assert text.startswith("The statement")
    assert len(text) > len("The statement")


TRAINING = ["--steps", "6", "--learning-rate", "1e-3", "--batch-tokens", "192", "--sequence-tokens", "96"]


def test_compress_in_one_shot_writes_the_same_files_as_prune_and_repair(
    tiny_folder: Path, texts: Path, tmp_path: Path
) -> None:
    calibration = ["--samples", "4", "--tokens", "96", "--seed", "3"]
    prune = ["prune", tiny_folder, "--sparsity", "0.6", "--method", "wanda", "--calibration", texts, *calibration]
    training = ["--data", texts, *TRAINING, "--density", "0.02", "--distill-weight", "0.5", "--retain", "none"]
    assert run(*prune, "--out", tmp_path / "pruned") == 0
    repair = ["repair", tmp_path / "pruned", *training, "--seed", "3", "--teacher", tiny_folder]
    assert run(*repair, "--out", tmp_path / "two") == 0
    compress = ["compress", tiny_folder, "--sparsity", "0.6", "--prune-method", "wanda", *calibration, *training]
    assert run(*compress, "--out", tmp_path / "one") == 0
    manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in ("one", "two")]
    assert manifests[0] == manifests[1]


def test_compress_gradually_reaches_the_sparsity_and_records_how(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, texts: Path, tmp_path: Path
) -> None:
    out, held_out = tmp_path / "out", tmp_path / "held_out.jsonl"
    held_out.write_text("".join(texts.read_text().splitlines(keepends=True)[:4]))
    command = ["compress", tiny_folder, "--sparsity", "0.6", "--schedule", "gradual", "--rise", "0.5", "--data", texts]
    evaluation = ["--held-out", held_out, "--evaluate-interval", "2"]
    data = run_json(capsys, *command, *TRAINING, "--density", "all", *evaluation, "--out", out)
    assert data["sparsity"]["linears"]["share"] == pytest.approx(0.6, abs=1e-3)
    facts = Record.read(out).facts
    assert (facts.prune.gradual, facts.calibration_sha256, facts.dataset_sha256) == (True, None, sha256(texts))
    assert facts.repair
    assert facts.repair.density == "all"
    assert run("inspect", out) == 0
    assert "pruned to 60% by gradual (unstructured)" in capsys.readouterr().out
    line = error_line(capsys, "repair", out, "--data", texts, *TRAINING, "--out", tmp_path / "again")
    assert "must be pruned and not repaired yet" in line


def test_contradictions_of_pruning_and_repair_are_rejected(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, texts: Path, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "out")
    gradual = ("compress", tiny_folder, "--sparsity", "0.5", "--schedule", "gradual", "--data", texts, *TRAINING)
    for arguments, message in (
        (("prune", tiny_folder, "--sparsity", "0.5", "--schedule", "gradual", *out), "Use seft compress, which prunes"),
        ((*gradual, "--density", "0.1", *out), "--density must be all with the schedule gradual; it is 0.1"),
        (
            (*gradual, "--density", "all", "--prune-method", "wanda", *out),
            "--prune-method must be left out with the schedule",
        ),
        (
            (*gradual, "--density", "all", "--repair-method", "spp", *out),
            "--density must be a number with the method spp",
        ),
        ((*gradual, "--density", "all", "--rise", "0.1", *out), "--rise must cover at least one of the 6 steps"),
        ((*gradual, "--density", "all", "--evaluate-interval", "2", *out), "--held-out must be given"),
        ((*gradual, "--density", "all", "--clip-norm", "1", *out), "--clip-norm must be left out with density all"),
        ((*gradual, "--density", "0.1", "--swap-tokens", "64", *out), "--swap-tokens must be 0 if density is a number"),
    ):
        assert message in error_line(capsys, *arguments)
    assert not (tmp_path / "out").exists()


def test_inspect_counts_the_zeros_and_shows_the_facts(capsys: pytest.CaptureFixture[str], repaired: Path) -> None:
    data = run_json(capsys, "inspect", repaired)
    assert data["sparsity"] == sparsity.of_folder(repaired).data()
    assert data["facts"]["prune"]["method"] == "admm"
    assert run("inspect", repaired) == 0
    text = capsys.readouterr().out
    assert "q_proj" in text
    assert "repaired by seft in 20 steps" in text


def test_inspect_of_a_compact_file_says_how_to_restore_the_folder(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, tmp_path: Path
) -> None:
    run_json(capsys, "pack", tiny_folder, file := tmp_path / "model.seft")
    assert f"`seft expand {file} FOLDER`" in error_line(capsys, "inspect", file)


def test_inspect_reads_any_dense_folder(capsys: pytest.CaptureFixture[str], tiny_folder: Path) -> None:
    data = run_json(capsys, "inspect", tiny_folder)
    assert data["facts"] is None
    assert data["sparsity"]["linears"]["zeros"] == 0


def test_magnitude_needs_no_text(capsys: pytest.CaptureFixture[str], tiny_folder: Path, tmp_path: Path) -> None:
    command = ["prune", tiny_folder, "--sparsity", "0.5", "--method", "magnitude", "--out", tmp_path / "out"]
    assert run_json(capsys, *command)["sparsity"]["linears"]["share"] == pytest.approx(0.5, abs=1 / 64)


def test_a_pattern_is_pruned_repaired_counted_and_recorded(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, texts: Path, tmp_path: Path
) -> None:
    command = ["prune", tiny_folder, "--pattern", "2:4", "--method", "ria", "--refine", "dsnot"]
    sizes = ["--calibration", texts, "--samples", "4", "--tokens", "64", "--out", tmp_path / "out"]
    assert run_json(capsys, *command, *sizes)["sparsity"]["linears"]["share"] == 0.5
    data = run_json(capsys, "inspect", tmp_path / "out")
    assert (data["facts"]["prune"]["pattern"], data["facts"]["prune"]["sparsity"]) == ("2:4", 0.5)
    assert Record.read(tmp_path / "out").facts.prune.pattern == Pattern(2, 4)
    assert "by ria with dsnot (2:4)" in (tmp_path / "out" / "README.md").read_text()
    sizes = ["--steps", "6", "--batch-tokens", "192", "--sequence-tokens", "64"]
    command = ["repair", tmp_path / "out", "--data", texts, "--density", "0.02", *sizes]
    rates = ["--schedule", "cosine", "--warmup-steps", "2", "--weight-decay", "0.01"]
    assert (
        run_json(capsys, *command, *rates, "--method", "fixed_mask", "--out", tmp_path / "mended")["grown_zeros"] == 0
    )
    repair = Record.read(tmp_path / "mended").facts.repair
    assert repair
    assert (repair.schedule, repair.warmup_steps, repair.weight_decay) == (RateSchedule.COSINE, 2, 0.01)
    assert sparsity.of_folder(tmp_path / "mended") == sparsity.of_folder(tmp_path / "out")
    events = ["--update-interval", "2", "--out", tmp_path / "evolved"]
    assert run_json(capsys, *command, *events)["grown_zeros"] > 0
    assert run_json(capsys, "inspect", tmp_path / "evolved")["sparsity"]["linears"]["share"] >= 0.5
    for name, tensor in load_file(tmp_path / "evolved" / "model.safetensors").items():
        if "_proj" in name:
            assert ((tensor != 0).view(-1, 4).sum(1) <= 2).all()


def test_blocks_are_reconstructed_after_pruning(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, texts: Path, tmp_path: Path
) -> None:
    sizes = ["--calibration", texts, "--samples", "8", "--tokens", "96", "--out"]
    command = ["prune", tiny_folder, "--sparsity", "0.7", "--method", "magnitude"]
    assert run(*command, "--out", tmp_path / "plain") == 0
    assert run(*command, "--reconstruct-epochs", "2", *sizes, tmp_path / "tuned") == 0
    assert "block 0, self_attn: error" in capsys.readouterr().err
    plain, tuned = (perplexity(capsys, tmp_path / name, texts) for name in ("plain", "tuned"))
    assert tuned < plain
    counts = [sparsity.of_folder(tmp_path / name).linears.zeros for name in ("plain", "tuned")]
    assert counts[0] == counts[1]
    line = error_line(capsys, *command, "--reconstruct-epochs", "1", "--out", tmp_path / "none")
    assert "--calibration must be given for reconstruction" in line


def test_a_sparsity_of_the_whole_model_is_distributed_and_recorded(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, texts: Path, tmp_path: Path
) -> None:
    command = ["prune", tiny_folder, "--sparsity", "0.5", "--sparsity-of", "model", "--allocation", "owl"]
    sizes = ["--calibration", texts, "--samples", "4", "--tokens", "64", "--out", tmp_path / "out"]
    assert run_json(capsys, *command, *sizes)["sparsity"]["model"]["share"] == pytest.approx(0.5, abs=1e-3)
    assert run("inspect", tmp_path / "out") == 0
    assert "pruned to 50% by admm with owl (unstructured)" in capsys.readouterr().out
    assert "Requested: 50.00% of the whole model" in (tmp_path / "out" / "README.md").read_text()


def test_a_process_prints_one_json_object_and_plain_lines_of_progress(pruned: Path, texts: Path) -> None:
    command = ["evaluate", pruned, "--data", texts, "--tokens", "64", "--windows", "2", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "seft", *map(str, command)], capture_output=True, text=True, check=True, timeout=120
    )
    assert json.loads(done.stdout)["windows"] == 2
    assert done.stderr.splitlines()[0].endswith("loading 0/1")
    assert "evaluating 2/2" in done.stderr


def test_multiple_choice_accuracy_is_measured(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, tmp_path: Path
) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"prompt": "The for", "choices": ["statement is", "qzx vwk"], "answer": 0}) + "\n")
    command = ["evaluate", tiny_folder, "--choices", questions]
    assert run_json(capsys, *command) == {
        "model": str(tiny_folder),
        "accuracy": 1.0,
        "accuracy_per_byte": 1.0,
        "questions": 1,
    }
    assert "not allowed with argument --choices" in error_line(capsys, *command, "--data", questions)


def error_line(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that fails with exit code 2 and no output, and return the last line on stderr."""
    capsys.readouterr()
    assert run(*arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    return output.err.splitlines()[-1]


def test_settings_out_of_range_are_rejected(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_folder: Path, texts: Path
) -> None:
    prune, out = ("prune", tiny_folder, "--sparsity"), ("--out", tmp_path / "out")
    repair = ("repair", tiny_folder, "--data", texts, "--steps")
    for arguments, message in (
        ((*prune, "1.2", *out), "--sparsity must be from 0.0 to 0.99; it is 1.2"),
        ((*prune, "half", *out), "invalid float value: 'half'"),
        (("prune", tiny_folder, *out), "--sparsity must be given if the pattern is not N:M"),
        ((*prune, "0.6", "--pattern", "2:4", *out), "must be 0.5, the sparsity of the pattern 2:4"),
        ((*prune, "0.6", "--pattern", "4:2", *out), "pattern must be unstructured, or N:M"),
        ((*prune, "0.6", "--method", "magnitude", "--refine", "dsnot", *out), "--calibration must be given for dsnot"),
        ((*prune, "0.6", "--allocation", "best", *out), "invalid choice: 'best'"),
        ((*prune, "0.5", *out), "--calibration must be given for admm"),
        ((*prune, "0.5", "--out", tiny_folder), "must be a new or an empty folder"),
        ((*repair, "0", *out), "--steps must be at least 1"),
        ((*repair, "1", "--batch-tokens", "700", *out), "must be a multiple of --sequence-tokens"),
        ((*prune, "0.5", "--damping", "0", *out), "--damping must be from 1e-06 to 1.0"),
        ((*repair, "1", "--warmup-steps", "-1", *out), "--warmup-steps must be from 0 to 0; it is -1"),
        ((*repair, "1", "--density", "0.1", "--weight-decay", "2", *out), "--weight-decay must be from 0.0 to 1.0"),
        ((*repair, "1", "--settle", "2", *out), "--settle must be from 0.0 to 1.0"),
        ((*repair, "1", "--schedule", "steep", *out), "invalid choice: 'steep'"),
        ((*repair, "1", "--distill-weight", "0.5", *out), "--teacher must be given for distillation"),
        ((*repair, "1", "--teacher", tiny_folder, *out), "--teacher must not be set without distillation"),
        ((*repair, "1", "--retain", "written", *out), "--teacher must be given if text is retained"),
        (
            (*repair, "1", "--retain", "dataset", "--retain-tokens", "9", *out),
            "--retain-tokens must be at least twice --sequence-tokens",
        ),
        (
            (*repair, "2", "--retain", "dataset", "--teacher", tiny_folder, *out),
            "--retain-data must be given if retain is dataset, and only then",
        ),
        (
            (*repair, "1", "--retain-data", texts, *out),
            "--retain-data must be given if retain is dataset, and only then",
        ),
        ((*repair, "1", "--evaluate-interval", "5", *out), "--held-out must be given if --evaluate-interval is set"),
        ((*repair, "1", "--held-out", texts, *out), "--held-out must not be set if --evaluate-interval is 0"),
        ((*repair, "1", "--patience", "2", *out), "--patience must be 0 if --evaluate-interval is 0"),
        (("evaluate", tiny_folder, "--data", texts, "--device", "tpu"), "invalid choice: 'tpu'"),
        (("flatten", tiny_folder), "invalid choice: 'flatten'"),
    ):
        assert message in error_line(capsys, *arguments)
    assert not (tmp_path / "out").exists()


def test_unusable_models_and_texts_are_rejected(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_folder: Path, texts: Path
) -> None:
    broken, none, out = tmp_path / "broken.jsonl", tmp_path / "none", ("--out", tmp_path / "out")
    broken.write_text('{"text": "a"}\n{"text": "b"}\n{"txt": "c"}\n')
    for arguments, message in (
        (("prune", tiny_folder, "--sparsity", "0.5", "--calibration", broken, *out), "line 3"),
        (("prune", none, "--sparsity", "0.5", "--calibration", texts, *out), "none"),
        (("repair", tiny_folder, "--data", texts, "--steps", "1", *out), "must have at least 1% zeros"),
        (("evaluate", tiny_folder, "--data", tmp_path / "none.txt"), "--data must be a file"),
        (("inspect", none), "folder must be a folder with a model"),
    ):
        assert message in error_line(capsys, *arguments)
    assert not (tmp_path / "out").exists()


def test_the_record_and_the_card_name_the_teacher(tiny_folder: Path, pruned: Path, texts: Path, tmp_path: Path) -> None:
    sizes = ["--steps", "2", "--batch-tokens", "96", "--sequence-tokens", "48", "--out", tmp_path / "out"]
    teacher = ["--teacher", tiny_folder, "--distill-weight", "0.5"]
    assert run("repair", pruned, "--data", texts, *teacher, *sizes) == 0
    facts = Record.read(tmp_path / "out").facts
    assert facts.teacher == facts.base
    assert facts.repair
    assert facts.repair.distill_weight == 0.5
    assert f"with `{facts.base.reference}` as the teacher" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.usefixtures("unverified")
def test_a_retained_dataset_is_recorded_and_the_model_stays_better_on_it(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, pruned: Path, texts: Path, tmp_path: Path
) -> None:
    lines = texts.read_text().splitlines(keepends=True)
    other, few = tmp_path / "other.jsonl", tmp_path / "few.jsonl"
    other.write_text("".join(lines[10:]))
    few.write_text("".join(lines[:2]))
    training = ["--data", few, *TRAINING, "--steps", "12", "--learning-rate", "5e-3"]
    retain = ["--retain", "dataset", "--retain-data", other, "--retain-share", "0.9", "--teacher", tiny_folder]
    assert run("repair", pruned, *training, *retain, "--out", tmp_path / "kept") == 0
    facts = Record.read(tmp_path / "kept").facts
    assert facts.repair
    assert (facts.repair.retain, facts.teacher) == (Retain.DATASET, facts.base)
    assert (facts.dataset_sha256, facts.retained_sha256) == (sha256(few), sha256(other))
    assert "90% of each batch was a second dataset" in (card := (tmp_path / "kept" / "README.md").read_text())
    assert f"| retained dataset sha256 | {sha256(other)} |" in card
    assert run("repair", pruned, *training, "--out", tmp_path / "forgot") == 0
    kept, forgot = (perplexity(capsys, tmp_path / model, other) for model in ("kept", "forgot"))
    assert kept < 0.97 * forgot


@pytest.mark.usefixtures("unverified")
def test_text_that_the_dense_model_writes_is_recorded_without_a_hash(
    tiny_folder: Path, pruned: Path, texts: Path, tmp_path: Path
) -> None:
    retain = ["--retain", "written", "--retain-tokens", "384", "--teacher", tiny_folder]
    assert run("repair", pruned, "--data", texts, *TRAINING, *retain, "--out", tmp_path / "out") == 0
    facts = Record.read(tmp_path / "out").facts
    assert facts.repair
    assert (facts.repair.retain, facts.teacher, facts.retained_sha256) == (Retain.WRITTEN, facts.base, None)
    assert "50% of each batch was text that the dense model wrote" in (tmp_path / "out" / "README.md").read_text()


def test_the_best_state_on_a_held_out_text_is_kept(pruned: Path, texts: Path, tmp_path: Path) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(texts.read_text().splitlines(keepends=True)[:4]))
    sizes = ["--steps", "20", "--batch-tokens", "96", "--sequence-tokens", "48", "--out", tmp_path / "out"]
    evaluation = ["--held-out", held_out, "--evaluate-interval", "1", "--patience", "1", "--learning-rate", "0.1"]
    assert run("repair", pruned, "--data", texts, *evaluation, *sizes) == 0
    facts = Record.read(tmp_path / "out").facts
    assert facts.stopped_at is not None
    assert facts.kept_at == facts.stopped_at - 1
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"The state after step {facts.kept_at} had the lowest loss" in card
    assert f"| held-out dataset sha256 | {facts.held_out_sha256} |" in card
    assert facts.held_out_sha256 == sha256(held_out)
