"""Jobs that train all nonzeros, with a pruned model or while the sparsity rises: messages, resuming and early ends."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from seft.checkpoint.facts import Record
from seft.config import PruneSchedule, Retain
from seft.data.packing import pack
from seft.data.text import encode
from seft.errors import DataError
from seft.retain import load_retained
from tests.tiny import tiny_tokenizer
from tests.worker.test_pipeline import SPEC, Run, _restore_torch_settings  # noqa: F401
from worker.pipeline import RETAINED, Pipeline
from worker.protocol import (
    END_TRAINING,
    RESULT,
    RESUME,
    RETAIN_DATA,
    STATE,
    Finished,
    Measured,
    Message,
    Progressed,
    Saved,
    TopologyEvolved,
)

STEPS = 8
REPAIR: dict[str, Any] = {
    "steps": STEPS,
    "batch_tokens": 192,
    "sequence_tokens": 96,
    "micro_batch": 1,
    "retain": "none",
}
RETAIN: dict[str, Any] = {"retain": "written", "retain_tokens": 8 * 96}
GRADUAL: dict[str, Any] = {"prune": {"schedule": "gradual", "rise": 0.5, "rise_interval": 2}, "repair": REPAIR}
ONE_SHOT: dict[str, Any] = {"repair": REPAIR}
WHOLE_MODEL: dict[str, Any] = {
    "prune": {**GRADUAL["prune"], "compare": "model"},
    "repair": {**REPAIR, "micro_batch": 2, **RETAIN},
}
DATASET: dict[str, Any] = {
    "repair": {**REPAIR, "retain": "dataset", "retain_dataset": "file_" + "1" * 26, "retain_tokens": 16 * 96}
}
JOBS = {"gradual": GRADUAL, "one_shot": ONE_SHOT, "whole_model": WHOLE_MODEL}


class SavingRun(Run):
    """A run that saves its state after every step. The states are moved to a folder, as the worker does it."""

    def run(self, stopping: Callable[[], bool] = lambda: False) -> "SavingRun":
        task = self.task.model_copy(update={"checkpoint_seconds": 0})
        Pipeline(self.folder, task, self._receive, stopping).run()
        return self

    def _receive(self, message: Message) -> None:
        self.messages.append(message)
        if isinstance(message, Saved):
            shutil.move(self.folder / RESUME / str(message.step), self.folder / "saved" / str(message.step))


class Runs:
    """Creates runs on the tiny model, each in a folder of its own."""

    def __init__(self, folder: Path, models: Path, texts: list[str]) -> None:
        self._folder, self._models, self._texts = folder, models, texts

    def new(self, name: str, spec: dict[str, Any], kind: type[Run] = Run) -> Run:
        retained = self._texts[40:60] if spec is DATASET else ()
        return kind(self._folder / name, self._models, self._texts[:20], retained=retained, **spec)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_texts: list[str]) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), tiny_folder.parent, tiny_texts)


def result_of(run: Run) -> Finished:
    result = run.messages[-1]
    assert isinstance(result, Finished)
    return result


def test_a_gradual_job_is_not_pruned_before_training_and_has_no_score_of_a_pruned_model(runs: Runs) -> None:
    run = runs.new("messages", GRADUAL).run()
    phases = list(dict.fromkeys(str(each.phase) for each in run.of_type(Progressed)))
    assert phases == ["loading", "evaluating", "training", "exporting"]
    progress = [message.progress for message in run.of_type(Progressed)]
    assert progress == sorted(progress)
    result = result_of(run)
    assert set(result.scores) == {"dense", "repaired"}
    assert result.measured["linears"]["share"] == pytest.approx(0.6, abs=1e-3)
    events = [message.event for message in run.of_type(TopologyEvolved)]
    assert [event.step for event in events] == [2, 4]
    assert 0 < events[0].sparsity < events[1].sparsity == pytest.approx(0.6, abs=1e-3)
    assert all(event.pruned > 0 and not event.undone for event in events)
    rows = {message.step: message.values for message in run.of_type(Measured)}
    assert {step: values["sparsity"] for step, values in rows.items() if "sparsity" in values} == {
        event.step: event.sparsity for event in events
    }
    assert not any("undone" in values for values in rows.values())
    facts = Record.read(run.folder / RESULT).facts
    assert (facts.prune.schedule, facts.calibration_sha256) == (PruneSchedule.GRADUAL, None)
    assert facts.repair
    assert facts.repair.trains_all
    assert json.loads((run.folder / RESULT / "sparsity.json").read_bytes())["facts"]["repair"]["density"] == "auto"
    card = (run.folder / RESULT / "README.md").read_text()
    assert "while all nonzero weights among these were trained" in card
    assert "in one shot" not in card


@pytest.mark.usefixtures("unverified")
@pytest.mark.parametrize("name", JOBS)
def test_a_job_killed_at_a_saved_step_gives_the_same_bytes(runs: Runs, name: str) -> None:
    whole = runs.new(name, JOBS[name], SavingRun).run()
    assert [message.step for message in whole.of_type(Saved)] == list(range(STEPS + 1))
    for step in range(STEPS + 1) if name == "gradual" else (0, 3, STEPS):
        resumed = runs.new(f"{name}-{step}", JOBS[name])
        for part in dict.fromkeys(("0", str(step))):
            shutil.copytree(whole.folder / "saved" / part, resumed.folder / STATE, dirs_exist_ok=True)
        resumed.task = resumed.task.model_copy(update={"resume": step})
        assert resumed.run().manifest() == whole.manifest(), step


def test_a_job_whose_linears_differ_in_sparsity_passes_the_verification(runs: Runs) -> None:
    run = runs.new("differing", {**WHOLE_MODEL, "repair": {**REPAIR, "steps": 4}}).run()
    assert result_of(run).measured["linears"]["share"] == pytest.approx(0.6, abs=1e-3)
    assert "60.00% of all linear layers together" in (run.folder / RESULT / "README.md").read_text()


@pytest.mark.usefixtures("unverified")
def test_a_job_that_retains_text_writes_it_first_and_scores_every_model_on_it(runs: Runs) -> None:
    run = runs.new("retained", {"repair": {**REPAIR, **RETAIN}}).run()
    phases = list(dict.fromkeys(str(each.phase) for each in run.of_type(Progressed)))
    assert phases == ["loading", "writing", "evaluating", "pruning", "training", "exporting"]
    progress = [message.progress for message in run.of_type(Progressed)]
    assert progress == sorted(progress)
    names = ("dense", "pruned", "repaired")
    scores = result_of(run).scores
    assert set(scores) == {*names, *(f"{name}_retained" for name in names)}
    assert scores["dense_retained"] < scores["repaired_retained"] < scores["pruned_retained"]
    card = (run.folder / RESULT / "README.md").read_text()
    assert f"| repaired | {scores['repaired']:.2f} | {scores['repaired_retained']:.2f} |" in card
    assert "50% of each batch was text that the dense model wrote" in card


@pytest.mark.usefixtures("unverified")
def test_a_job_retains_its_second_dataset_and_scores_every_model_on_it(runs: Runs, tiny_texts: list[str]) -> None:
    run = runs.new("second", DATASET).run()
    phases = list(dict.fromkeys(str(each.phase) for each in run.of_type(Progressed)))
    assert phases == ["loading", "writing", "evaluating", "pruning", "training", "exporting"]
    config = run.task.spec.repair_config()
    assert config
    expected = pack(encode(tiny_texts[40:60], tiny_tokenizer()), 96)[: config.retained_windows]
    kept = load_retained(run.folder / RESUME / "0" / RETAINED)
    assert torch.equal(kept.tokens, expected.tokens)
    scores = result_of(run).scores
    assert scores["dense_retained"] < scores["repaired_retained"] < scores["pruned_retained"]
    assert set(scores) == {f"{name}{part}" for name in ("dense", "pruned", "repaired") for part in ("", "_retained")}
    facts = Record.read(run.folder / RESULT).facts
    assert facts.repair
    assert (facts.repair.retain, facts.retained_sha256) == (Retain.DATASET, "1" * 64)
    assert "50% of each batch was a second dataset" in (run.folder / RESULT / "README.md").read_text()
    killed = runs.new("second-killed", DATASET).run_until(3)
    assert runs.new("second-resumed", DATASET).resume_from(killed, 3).run().manifest() == run.manifest()


def test_a_dataset_to_retain_that_is_too_short_fails_the_job_before_the_model_is_loaded(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.pipeline.load", lambda *_, **__: pytest.fail("the model was loaded"))
    run = runs.new("short", DATASET)
    for texts, message in (
        (["few", "words"], "the text to retain fills no sequence: the text must have"),
        (["word " * 50, "more"], "the text to retain must fill at least two sequences of 96 tokens; it fills 1"),
    ):
        (run.folder / RETAIN_DATA).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        with pytest.raises(DataError, match=message):
            run.run()


@pytest.mark.usefixtures("unverified")
@pytest.mark.parametrize("stop", [0, 1, 3, 6])
def test_a_gradual_job_that_ends_early_has_the_requested_sparsity(runs: Runs, stop: int) -> None:
    run, lost, again = (runs.new(f"stop-{stop}-{name}", GRADUAL) for name in "abc")
    for each in (run, again):
        (each.folder / END_TRAINING).write_text(str(stop))
    result = result_of(run.run())
    assert result.step == max(stop, 1)
    assert result.measured["linears"]["share"] == pytest.approx(0.6, abs=1e-3)
    assert set(result.scores) == {"dense", "repaired"}
    facts = Record.read(run.folder / RESULT).facts
    assert (facts.stopped_at, facts.repair is None) == (max(stop, 1), False)
    again.resume_from(lost.run_until(1), 0).run()
    assert again.manifest() == run.manifest()


@pytest.mark.usefixtures("unverified")
def test_a_gradual_job_keeps_a_best_state_only_from_after_the_rise(runs: Runs) -> None:
    repair = {**REPAIR, "evaluate_interval": 1, "learning_rate": 0.1}
    run = runs.new("best", {**GRADUAL, "repair": repair}).run()
    rows = {message.step: message.values for message in run.of_type(Measured)}
    losses = {step: values["held_out_loss"] for step, values in rows.items() if "held_out_loss" in values}
    kept = min(losses, key=losses.__getitem__)
    assert min(losses) == 4
    assert Record.read(run.folder / RESULT).facts.kept_at == (kept if kept < STEPS else None)
    assert result_of(run).measured["linears"]["share"] == pytest.approx(0.6, abs=1e-3)
    first = runs.new("best-first", {**GRADUAL, "repair": repair}).run_until(6)
    second = runs.new("best-second", {**GRADUAL, "repair": repair}).resume_from(first, 6).run()
    assert second.manifest() == run.manifest()


@pytest.mark.usefixtures("unverified")
def test_blocks_that_get_different_zeros_are_read_from_the_training_text(runs: Runs) -> None:
    prune = {**GRADUAL["prune"], "calibration": {"samples": 4, "tokens": 96}}
    run = runs.new("owl", {**GRADUAL, "prune": prune, "allocation": "owl"}).run()
    assert result_of(run).measured["linears"]["share"] == pytest.approx(0.6, abs=1e-3)
    assert Record.read(run.folder / RESULT).facts.calibration_sha256 is None


@pytest.mark.usefixtures("unverified")
def test_a_job_of_one_micro_batch_per_step_trains_all_nonzeros_and_keeps_the_zeros(runs: Runs) -> None:
    run = runs.new("kept", {"repair": {**REPAIR, "micro_batch": 2}}).run()
    result = result_of(run)
    assert set(result.scores) == {"dense", "pruned", "repaired"}
    assert result.scores["repaired"] < result.scores["pruned"]
    assert result.measured["grown_zeros"] == 0
    assert not run.of_type(TopologyEvolved)
    assert SPEC["prune"]["method"] == "wanda"
    card = (run.folder / RESULT / "README.md").read_text()
    assert "training all nonzero weights among these in place" in card
