"""A job in the training process: which messages it sends, and that an interruption does not change the result."""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import load_file

from core.estimate.speed import Speed
from core.specs import Dtype, JobSpec
from core.states import Phase
from seft.checkpoint.facts import Record
from seft.checkpoint.provenance import this_machine
from seft.config import RepairConfig
from seft.errors import Cancelled
from seft.repair import state
from worker import pipeline
from worker.disk_space import NoDiskSpaceError
from worker.pipeline import Pipeline
from worker.protocol import (
    DATA,
    END_TRAINING,
    HELD_OUT_DATA,
    RESULT,
    RESUME,
    RETAIN_DATA,
    STATE,
    Finished,
    Measured,
    Message,
    Progressed,
    Reading,
    Refused,
    Saved,
    Scored,
    Task,
    TopologyEvolved,
)

SPEC: dict[str, Any] = {
    "model": "tiny",
    "dataset": "file_" + "0" * 26,
    "sparsity": 0.6,
    "dtype": "float32",
    "prune": {"method": "wanda", "calibration": {"samples": 4, "tokens": 96}},
    "repair": {
        "steps": 8,
        "batch_tokens": 192,
        "sequence_tokens": 96,
        "micro_batch": 1,
        "update_interval": 3,
        "density": 0.02,
        "retain": "none",
    },
    "evaluate": {"windows": 3, "tokens": 96},
}


@pytest.fixture(scope="module", autouse=True)
def _restore_torch_settings() -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


T = TypeVar("T")


class Run:
    """One run in a folder of its own, and the messages that it sent."""

    def __init__(
        self,
        folder: Path,
        models: Path,
        texts: Sequence[str | dict[str, Any]],
        micro_batch: int | None = None,
        *,
        retained: Sequence[str] = (),
        held_out: Sequence[str] = (),
        **spec: object,
    ) -> None:
        self.folder, self.messages = folder, list[Message]()
        folder.mkdir()
        for name, some in ((DATA, texts), (RETAIN_DATA, retained), (HELD_OUT_DATA, held_out)):
            records = [{"text": text} if isinstance(text, str) else text for text in some]
            (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
        self.task = Task(
            spec=JobSpec.model_validate({**SPEC, **spec}),
            dataset_sha256="0" * 64,
            resume=None,
            model_roots=[models],
            device="cpu",
            threads=1,
            checkpoint_seconds=1000,
            micro_batch=micro_batch,
            retained_sha256="1" * 64 if retained else None,
            speed=Speed(flops={Dtype.FLOAT32: 1e9}),
            held_out_sha256="2" * 64 if held_out else None,
        )

    def resume_from(self, other: "Run", step: int) -> "Run":
        """Give this run the state that another one saved at a step, as the worker does for the next attempt."""
        for name in dict.fromkeys(("0", str(step))):
            shutil.copytree(other.folder / RESUME / name, self.folder / STATE, dirs_exist_ok=True)
        self.task = self.task.model_copy(update={"resume": step})
        return self

    def run(self, stopping: Callable[[], bool] = lambda: False) -> "Run":
        Pipeline(self.folder, self.task, self.messages.append, stopping).run()
        return self

    def run_until(self, step: int) -> "Run":
        """Run, and request a stop after this many training steps."""
        with pytest.raises(Cancelled):
            self.run(stopping=lambda: len(self.of_type(Measured)) == step)
        return self

    def manifest(self) -> bytes:
        return (self.folder / RESULT / "manifest.json").read_bytes()

    def of_type(self, kind: type[T]) -> list[T]:
        return [message for message in self.messages if isinstance(message, kind)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_texts: list[str]) -> Run:
    return Run(tmp_path_factory.mktemp("runs") / "uninterrupted", tiny_folder.parent, tiny_texts[:20]).run()


def test_a_run_reports_its_progress_and_its_measurements(uninterrupted: Run) -> None:
    progress = [message.progress for message in uninterrupted.of_type(Progressed)]
    assert progress == sorted(progress)
    remaining = [message.remaining for message in uninterrupted.of_type(Progressed)]
    assert remaining[:2] == [None, None], "while the model is loaded, nothing is known"
    known = [left for left in remaining[2:] if left is not None]
    assert len(known) == len(remaining) - 2
    assert min(known) == known[-1] > 0, "the upload is left"
    assert [message.step for message in uninterrupted.of_type(Measured)] == list(range(1, 9))
    assert uninterrupted.of_type(Saved) == [Saved(step=0)], (
        "a further state is not saved until the first one is removed"
    )
    result = uninterrupted.messages[-1]
    assert isinstance(result, Finished)
    assert set(result.scores) == {"dense", "pruned", "repaired"}
    assert result.measured["linears"]["share"] == pytest.approx(0.6, abs=0.01)
    assert result.measured["grown_zeros"] > 0


def test_reading_is_reported_before_the_first_record_is_read(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run", tiny_folder.parent, tiny_texts[:10])

    def read(*_: object) -> None:
        assert run.of_type(Reading) == [Reading(records=0)]
        raise Cancelled

    monkeypatch.setattr("seft.data.records.read", read)
    with pytest.raises(Cancelled):
        run.run()


def test_reading_is_reported_before_a_tokenizer_runs_and_can_be_stopped(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.pipeline.READING_SECONDS", 0.0)
    run = Run(tmp_path / "run", tiny_folder.parent, tiny_texts[:10])
    with pytest.raises(Cancelled):
        run.run(stopping=lambda: len(run.of_type(Reading)) == 4)
    assert [message.records for message in run.of_type(Reading)] == [0, 0, 1, 2]
    assert [message.progress for message in run.of_type(Progressed)] == [0.0], "nothing is loaded yet"


def test_topology_updates_are_reported_per_layer_and_their_sums_are_in_the_metrics(uninterrupted: Run) -> None:
    updates = [message.event for message in uninterrupted.of_type(TopologyEvolved)]
    rows = {message.step: message.values for message in uninterrupted.of_type(Measured)}
    assert [event.step for event in updates] == [1, 3, 6]
    for event in updates:
        assert len(event.layers) == 28
        for name in ("dropped", "grown", "reactivated", "pruned"):
            total = sum(getattr(layer, name) for layer in event.layers.values())
            assert getattr(event, name) == rows[event.step][name] == total
    assert updates[0].reactivated > 0
    assert len({layer.reactivated for layer in updates[0].layers.values()}) > 1
    names = {"loss", "learning_rate", "tokens_per_second", "memory_bytes"}
    assert all(set(rows[step]) == names for step in (2, 4, 5, 7, 8))
    assert all(1e8 < values["memory_bytes"] < 1e11 for values in rows.values()), (
        "bytes of a process that has loaded torch"
    )


def test_an_interrupted_and_resumed_run_gives_the_same_bytes(
    uninterrupted: Run, tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    first = Run(tmp_path / "first", tiny_folder.parent, tiny_texts[:20]).run_until(4)
    assert first.of_type(Saved) == [Saved(step=0), Saved(step=4)]
    second = Run(tmp_path / "second", tiny_folder.parent, tiny_texts[:20]).resume_from(first, 4)
    kept: list[bool] = []

    def stopping() -> bool:
        kept.extend((second.folder / STATE).exists() for _ in second.of_type(Measured)[:1])
        return False

    second.run(stopping)
    assert True not in kept, "after the first step, the state that was read must be deleted"
    assert second.of_type(Scored)[0] == first.of_type(Scored)[-1]
    assert second.manifest() == uninterrupted.manifest()


def test_a_state_of_other_software_restarts_training_and_does_not_fail_the_job(
    uninterrupted: Run, tmp_path: Path, tiny_folder: Path, tiny_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Run(tmp_path / "first", tiny_folder.parent, tiny_texts[:20])
    with monkeypatch.context() as older:
        older.setattr(state, "FORMAT_VERSION", state.FORMAT_VERSION - 1)
        first.run_until(4)
    second = Run(tmp_path / "second", tiny_folder.parent, tiny_texts[:20]).resume_from(first, 4).run()
    (refused,) = second.of_type(Refused)
    assert "must have the kind of this repair" in refused.message
    assert [message.step for message in second.of_type(Measured)] == list(range(1, 9))
    assert not any(message.phase == Phase.PRUNING for message in second.of_type(Progressed))
    assert second.manifest() == uninterrupted.manifest()


def test_a_run_that_was_stopped_early_and_lost_its_steps_repeats_them(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    first, second, third = (Run(tmp_path / name, tiny_folder.parent, tiny_texts[:20]) for name in "abc")
    (first.folder / END_TRAINING).write_text("4")
    result, repair, stopped_at = early_stop(first.run())
    assert (result.step, repair is None, stopped_at) == (4, False, 4)
    (second.folder / END_TRAINING).write_text("4")
    third.resume_from(second.run_until(2), 0)
    (third.folder / END_TRAINING).write_text("4")
    assert third.run().manifest() == first.manifest()


def test_a_run_resumes_with_another_micro_batch_and_has_the_same_losses_and_names_both_machines(
    uninterrupted: Run, tmp_path: Path, tiny_folder: Path, tiny_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = this_machine("cpu")
    other = replace(here, hardware="another CPU")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(pipeline, "this_machine", lambda *_: other)
        first = Run(tmp_path / "first", tiny_folder.parent, tiny_texts[:20]).run_until(4)
    second = Run(tmp_path / "second", tiny_folder.parent, tiny_texts[:20], micro_batch=2).resume_from(first, 4).run()
    losses = [[message.values["loss"] for message in run.of_type(Measured)[-4:]] for run in (uninterrupted, second)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    facts = Record.read(second.folder / RESULT).facts
    assert (facts.pruned_on, facts.repaired_on) == (other, replace(here, threads=1, deterministic=True))
    assert [(each.machine, each.micro_batch) for each in facts.attempts] == [(other, 1), (facts.repaired_on, 2)]


def test_a_full_disk_is_reported_before_anything_is_written(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.disk_space.RESERVE_BYTES", 1 << 62)
    run = Run(tmp_path / "run", tiny_folder.parent, tiny_texts[:20])
    with pytest.raises(NoDiskSpaceError, match=r"The job needs \d+ bytes") as caught:
        run.run()
    assert caught.value.needed > 0
    assert not run.of_type(Saved)


def test_a_run_that_gets_worse_ends_early_with_its_best_state_even_if_interrupted(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    repair = {**SPEC["repair"], "learning_rate": 0.3, "evaluate_interval": 2, "patience": 1}
    run = Run(tmp_path / "run", tiny_folder.parent, tiny_texts[:20], repair=repair).run()
    rows = {message.step: message.values for message in run.of_type(Measured)}
    losses = {step: values["held_out_loss"] for step, values in rows.items() if "held_out_loss" in values}
    facts, result = Record.read(run.folder / RESULT).facts, run.messages[-1]
    assert isinstance(result, Finished)
    assert facts.stopped_at == result.step == max(losses) == max(rows) < 8
    assert facts.kept_at == min(losses, key=losses.__getitem__) == facts.stopped_at - 2
    assert result.scores["repaired"] == pytest.approx(math.exp(losses[facts.kept_at]), rel=0.02)
    card = (run.folder / RESULT / "README.md").read_text()
    assert f"in {facts.stopped_at} of 8 steps" in card
    assert f"The state after step {facts.kept_at} had the lowest loss" in card
    for stop in (1, facts.stopped_at - 1, facts.stopped_at):
        first = Run(tmp_path / f"first-{stop}", tiny_folder.parent, tiny_texts[:20], repair=repair).run_until(stop)
        second = Run(tmp_path / f"second-{stop}", tiny_folder.parent, tiny_texts[:20], repair=repair)
        assert second.resume_from(first, stop).run().manifest() == run.manifest()


def early_stop(run: Run) -> tuple[Finished, RepairConfig | None, int | None]:
    """Return the result of a run that was stopped early, and the repair and the step that its checkpoint records."""
    result, facts = run.messages[-1], Record.read(run.folder / RESULT).facts
    assert isinstance(result, Finished)
    return result, facts.repair, facts.stopped_at


def test_a_run_that_is_stopped_early_evaluates_and_exports_what_it_has(
    uninterrupted: Run, tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    run = Run(tmp_path / "run", tiny_folder.parent, tiny_texts[:20])

    def stop_training_early() -> bool:
        if len(run.of_type(Measured)) == 4:
            (run.folder / END_TRAINING).write_text("0")
        return False

    shutil.rmtree(run.folder / RESUME, ignore_errors=True)
    run.run(stopping=stop_training_early)
    result, repair, stopped_at = early_stop(run)
    assert (result.step, stopped_at) == (4, 4)
    assert repair is not None
    assert set(result.scores) == {"dense", "pruned", "repaired"}
    assert "4 of 8 steps" in (run.folder / RESULT / "README.md").read_text()
    again = Run(tmp_path / "again", tiny_folder.parent, tiny_texts[:20]).run_until(4)
    resumed = Run(tmp_path / "resumed", tiny_folder.parent, tiny_texts[:20]).resume_from(again, 4)
    (resumed.folder / END_TRAINING).write_text("4")
    assert resumed.run().manifest() == run.manifest() != uninterrupted.manifest()


def test_a_run_that_is_stopped_before_its_first_step_publishes_the_pruned_model(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    repair_config = {**SPEC["repair"], "retain": "written"}
    run = Run(tmp_path / "run", tiny_folder.parent, tiny_texts[:20], repair=repair_config)
    (run.folder / END_TRAINING).write_text("0")
    result, repair, stopped_at = early_stop(run.run())
    assert set(Record.read(run.folder / RESULT).facts.texts) == {"dataset", "held_out"}, "retained text had no effect"
    assert (result.step, repair, stopped_at) == (0, None, None)
    assert set(result.scores) == {"dense", "pruned"}


def test_a_run_that_is_stopped_when_its_training_begins_takes_one_step(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run", tiny_folder.parent, tiny_texts[:20])
    monkeypatch.setattr("seft.stages.require_zeros", lambda *_: (run.folder / END_TRAINING).write_text("0"))
    assert early_stop(run.run())[2] == 1


def test_training_on_completions_with_a_teacher_resumes_to_the_same_bytes(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    pairs = [{"prompt": text[:40], "completion": text[40:90]} for text in tiny_texts[:20]]
    repair = {**SPEC["repair"], "distill_weight": 0.5, "hidden_weight": 0.5}
    whole = Run(tmp_path / "whole", tiny_folder.parent, pairs, repair=repair).run()
    teacher = Record.read(whole.folder / RESULT).facts.teacher
    assert teacher is not None
    assert teacher.reference == "tiny"
    assert "with `tiny` as the teacher" in (whole.folder / RESULT / "README.md").read_text()
    first = Run(tmp_path / "first", tiny_folder.parent, pairs, repair=repair).run_until(4)
    second = Run(tmp_path / "second", tiny_folder.parent, pairs, repair=repair).resume_from(first, 4)
    assert second.run().manifest() == whole.manifest()


def test_blocks_are_reconstructed_once_and_the_state_contains_the_result(
    uninterrupted: Run, tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    prune = {**SPEC["prune"], "reconstruct_epochs": 2, "reconstruct_learning_rate": 1e-3}
    whole = Run(tmp_path / "whole", tiny_folder.parent, tiny_texts[:20], prune=prune).run()
    phases = list(dict.fromkeys(each.phase for each in whole.of_type(Progressed)))
    assert [*map(str, phases)] == ["loading", "evaluating", "pruning", "reconstructing", "training", "exporting"]
    scores = [run.messages[-1].scores["pruned"] for run in (whole, uninterrupted)]  # type: ignore[union-attr]
    assert scores[0] != scores[1]
    again = Run(tmp_path / "again", tiny_folder.parent, tiny_texts[:20], prune=prune).resume_from(whole, 0).run()
    assert not [each for each in again.of_type(Progressed) if each.phase == "reconstructing"]
    assert again.manifest() == whole.manifest()
    assert "by wanda with reconstruction" in (whole.folder / RESULT / "README.md").read_text()


def test_a_job_that_only_prunes_is_evaluated_twice_and_trains_nothing(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    run = Run(
        tmp_path / "run",
        tiny_folder.parent,
        tiny_texts[:20],
        prune={"method": "magnitude"},
        repair={"method": "none"},
    ).run()
    result = run.messages[-1]
    assert isinstance(result, Finished)
    assert set(result.scores) == {"dense", "pruned"}
    assert result.measured["grown_zeros"] == 0
    assert not run.of_type(Measured)


def test_the_topology_of_a_pattern_job_evolves_within_the_pattern(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    run = Run(tmp_path / "run", tiny_folder.parent, tiny_texts[:20], sparsity=0.5, pattern="2:4").run()
    result = run.messages[-1]
    assert isinstance(result, Finished)
    assert result.measured["grown_zeros"] > 0
    for name, tensor in load_file(run.folder / RESULT / "model.safetensors").items():
        if "_proj" in name:
            assert ((tensor != 0).view(-1, 4).sum(1) <= 2).all()
