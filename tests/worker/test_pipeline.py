"""A job as the training process does it: what it says, and that an interruption changes no byte of the result."""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.specs import JobSpec
from core.states import Phase
from seft.checkpoint.facts import Record
from seft.config import RepairConfig
from seft.errors import Cancelled, ConfigError, DataError
from seft.repair import state
from worker.disk_space import NoDiskSpaceError
from worker.pipeline import Pipeline
from worker.protocol import (
    DATA,
    ENOUGH,
    RESULT,
    RESUME,
    STATE,
    Finished,
    Measured,
    Message,
    Progressed,
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
    "prune": {"method": "wanda", "calibration": {"samples": 4, "tokens": 96}},
    "repair": {"steps": 8, "batch_tokens": 192, "sequence_tokens": 96, "update_interval": 3, "density": 0.02},
    "evaluate": {"windows": 3, "tokens": 96},
}


@pytest.fixture(scope="module", autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


class Run:
    """One run in a folder of its own, and all that it said."""

    def __init__(
        self,
        folder: Path,
        models: Path,
        texts: Sequence[str | dict[str, Any]],
        resume: int | None = None,
        micro_batch: int | None = None,
        **spec: object,
    ) -> None:
        self.folder, self.said = folder, list[Message]()
        folder.mkdir()
        records = [{"text": text} if isinstance(text, str) else text for text in texts]
        (folder / DATA).write_text("".join(json.dumps(record) + "\n" for record in records))
        self.task = Task(
            spec=JobSpec.model_validate({**SPEC, **spec}),
            dataset_sha256="0" * 64,
            resume=resume,
            model_roots=[models],
            device="cpu",
            threads=1,
            checkpoint_seconds=1000,
            micro_batch=micro_batch,
        )

    def go(self, stopping: Callable[[], bool] = lambda: False) -> "Run":
        Pipeline(self.folder, self.task, self.said.append, stopping).run()
        return self

    def manifest(self) -> bytes:
        return (self.folder / RESULT / "manifest.json").read_bytes()

    def all(self, kind: type[Message]) -> list[Message]:
        return [message for message in self.said if isinstance(message, kind)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_texts: list[str]) -> Run:
    return Run(tmp_path_factory.mktemp("runs") / "undisturbed", tiny_folder.parent, tiny_texts[:40]).go()


def test_a_run_says_where_it_is_and_what_it_found(undisturbed: Run) -> None:
    progress = [message.progress for message in undisturbed.said if isinstance(message, Progressed)]
    assert progress == sorted(progress)
    assert [message.step for message in undisturbed.said if isinstance(message, Measured)] == list(range(1, 9))
    assert undisturbed.all(Saved) == [Saved(step=0)], "the folder of the first state was never taken away"
    result = undisturbed.said[-1]
    assert isinstance(result, Finished)
    assert set(result.scores) == {"dense", "pruned", "repaired"}
    assert result.measured["linears"]["share"] == pytest.approx(0.6, abs=0.01)
    assert result.measured["grown_zeros"] > 0


def test_events_of_the_topology_are_told_for_each_layer_and_their_sums_are_in_the_metrics(undisturbed: Run) -> None:
    told = [message for message in undisturbed.said if isinstance(message, TopologyEvolved)]
    rows = {message.step: message.values for message in undisturbed.said if isinstance(message, Measured)}
    assert [event.step for event in told] == [1, 3, 6]
    for event in told:
        assert len(event.layers) == 28
        for name in ("dropped", "grown", "reactivated", "pruned"):
            total = sum(getattr(layer, name) for layer in event.layers.values())
            assert getattr(event, name) == rows[event.step][name] == total
    assert told[0].reactivated > 0
    assert len({layer.reactivated for layer in told[0].layers.values()}) > 1
    every = {"loss", "learning_rate", "tokens_per_second", "memory_bytes"}
    assert all(set(rows[step]) == every for step in (2, 4, 5, 7, 8))
    assert all(1e8 < values["memory_bytes"] < 1e11 for values in rows.values()), "of a process with torch, in bytes"


def test_a_run_that_was_stopped_and_taken_up_ends_in_the_same_bytes(
    undisturbed: Run, tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    first = Run(tmp_path / "first", tiny_folder.parent, tiny_texts[:40])
    with pytest.raises(Cancelled):
        first.go(stopping=lambda: len(first.all(Measured)) == 4)
    assert first.all(Saved) == [Saved(step=0), Saved(step=4)]
    second = Run(tmp_path / "second", tiny_folder.parent, tiny_texts[:40], resume=4)
    for step in ("0", "4"):
        shutil.copytree(first.folder / RESUME / step, second.folder / STATE, dirs_exist_ok=True)
    second.go()
    assert second.all(Scored)[0] == first.all(Scored)[-1]
    assert second.manifest() == undisturbed.manifest()


def test_a_state_that_other_software_left_costs_its_steps_and_not_the_job(
    undisturbed: Run, tmp_path: Path, tiny_folder: Path, tiny_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Run(tmp_path / "first", tiny_folder.parent, tiny_texts[:40])
    with monkeypatch.context() as older:
        older.setattr(state, "KIND", state.KIND - 1)
        with pytest.raises(Cancelled):
            first.go(stopping=lambda: len(first.all(Measured)) == 4)
    second = Run(tmp_path / "second", tiny_folder.parent, tiny_texts[:40], resume=4)
    for step in ("0", "4"):
        shutil.copytree(first.folder / RESUME / step, second.folder / STATE, dirs_exist_ok=True)
    second.go()
    (refused,) = second.all(Refused)
    assert "must have the kind of this repair" in refused.message  # type: ignore[union-attr]
    assert [message.step for message in second.said if isinstance(message, Measured)] == list(range(1, 9))
    assert not any(message.phase == Phase.PRUNING for message in second.said if isinstance(message, Progressed))
    assert second.manifest() == undisturbed.manifest()


def test_a_stopped_run_whose_steps_are_lost_takes_them_again(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    first, second, third = (Run(tmp_path / name, tiny_folder.parent, tiny_texts[:40]) for name in "abc")
    (first.folder / ENOUGH).write_text("4")
    result, repair, stopped_at = stopped(first.go())
    assert (result.step, repair is None, stopped_at) == (4, False, 4)
    (second.folder / ENOUGH).write_text("4")
    with pytest.raises(Cancelled):
        second.go(stopping=lambda: len(second.all(Measured)) == 2)
    third.task = third.task.model_copy(update={"resume": 0})
    shutil.copytree(second.folder / RESUME / "0", third.folder / STATE)
    (third.folder / ENOUGH).write_text("4")
    assert third.go().manifest() == first.manifest()


def test_a_run_goes_on_with_another_micro_batch_and_learns_the_same(
    undisturbed: Run, tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    first = Run(tmp_path / "first", tiny_folder.parent, tiny_texts[:40])
    with pytest.raises(Cancelled):
        first.go(stopping=lambda: len(first.all(Measured)) == 4)
    second = Run(tmp_path / "second", tiny_folder.parent, tiny_texts[:40], resume=4, micro_batch=2)
    for step in ("0", "4"):
        shutil.copytree(first.folder / RESUME / step, second.folder / STATE, dirs_exist_ok=True)
    second.go()
    losses = [[message.values["loss"] for message in run.all(Measured)[-4:]] for run in (undisturbed, second)]  # type: ignore[union-attr]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_a_disk_without_room_is_told_before_anything_is_written(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.disk_space.RESERVE_BYTES", 1 << 62)
    run = Run(tmp_path / "run", tiny_folder.parent, tiny_texts[:40])
    with pytest.raises(NoDiskSpaceError, match="bytes are to be written") as caught:
        run.go()
    assert caught.value.needed > 0
    assert not run.all(Saved)


def test_a_run_that_gets_worse_ends_early_with_its_best_state_and_so_does_one_that_was_interrupted(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    repair = {**SPEC["repair"], "learning_rate": 0.3, "evaluate_interval": 2, "patience": 1}
    run = Run(tmp_path / "run", tiny_folder.parent, tiny_texts[:40], repair=repair).go()
    rows = {message.step: message.values for message in run.said if isinstance(message, Measured)}
    losses = {step: values["held_out_loss"] for step, values in rows.items() if "held_out_loss" in values}
    facts, result = Record.read(run.folder / RESULT).facts, run.said[-1]
    assert isinstance(result, Finished)
    assert facts.stopped_at == result.step == max(losses) == max(rows) < 8
    assert facts.kept_at == min(losses, key=losses.__getitem__) == facts.stopped_at - 2
    assert result.scores["repaired"] == pytest.approx(math.exp(losses[facts.kept_at]), rel=0.02)
    said = (run.folder / RESULT / "README.md").read_text()
    assert f"in {facts.stopped_at} of 8 steps" in said
    assert f"The state after step {facts.kept_at} had the lowest loss" in said
    for stop in (1, facts.stopped_at - 1, facts.stopped_at):
        first = Run(tmp_path / f"first-{stop}", tiny_folder.parent, tiny_texts[:40], repair=repair)
        with pytest.raises(Cancelled):
            first.go(stopping=lambda run=first, stop=stop: len(run.all(Measured)) == stop)  # type: ignore[misc]
        second = Run(tmp_path / f"second-{stop}", tiny_folder.parent, tiny_texts[:40], resume=stop, repair=repair)
        for step in ("0", str(stop)):
            shutil.copytree(first.folder / RESUME / step, second.folder / STATE, dirs_exist_ok=True)
        assert second.go().manifest() == run.manifest()


def stopped(run: Run) -> tuple[Finished, RepairConfig | None, int | None]:
    """The result of a run that was told that it is enough, and what its checkpoint says of its repair."""
    result, facts = run.said[-1], Record.read(run.folder / RESULT).facts
    assert isinstance(result, Finished)
    return result, facts.repair, facts.stopped_at


def test_a_run_that_is_told_to_stop_judges_and_exports_what_it_has(
    undisturbed: Run, tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    run = Run(tmp_path / "run", tiny_folder.parent, tiny_texts[:40])

    def never() -> bool:
        if len(run.all(Measured)) == 4:
            (run.folder / ENOUGH).write_text("0")
        return False

    shutil.rmtree(run.folder / RESUME, ignore_errors=True)
    run.go(stopping=never)
    result, repair, stopped_at = stopped(run)
    assert (result.step, stopped_at) == (4, 4)
    assert repair is not None
    assert set(result.scores) == {"dense", "pruned", "repaired"}
    assert "4 of 8 steps" in (run.folder / RESULT / "README.md").read_text()
    again = Run(tmp_path / "again", tiny_folder.parent, tiny_texts[:40])
    with pytest.raises(Cancelled):
        again.go(stopping=lambda: len(again.all(Measured)) == 4)
    resumed = Run(tmp_path / "resumed", tiny_folder.parent, tiny_texts[:40], resume=4)
    for step in ("0", "4"):
        shutil.copytree(again.folder / RESUME / step, resumed.folder / STATE, dirs_exist_ok=True)
    (resumed.folder / ENOUGH).write_text("4")
    assert resumed.go().manifest() == run.manifest() != undisturbed.manifest()


def test_a_run_that_is_told_to_stop_before_its_first_step_publishes_the_pruned_model(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    run = Run(tmp_path / "run", tiny_folder.parent, tiny_texts[:40])
    (run.folder / ENOUGH).write_text("0")
    result, repair, stopped_at = stopped(run.go())
    assert (result.step, repair, stopped_at) == (0, None, None)
    assert set(result.scores) == {"dense", "pruned"}


def test_completions_and_a_teacher_are_learnt_from_and_taken_up_as_texts_are(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    pairs = [{"prompt": text[:40], "completion": text[40:90]} for text in tiny_texts[:40]]
    repair = {**SPEC["repair"], "distill_weight": 0.5, "hidden_weight": 0.5}
    whole = Run(tmp_path / "whole", tiny_folder.parent, pairs, repair=repair).go()
    teacher = Record.read(whole.folder / RESULT).facts.teacher
    assert teacher is not None
    assert teacher.reference == "tiny"
    assert "with `tiny` as the teacher" in (whole.folder / RESULT / "README.md").read_text()
    first = Run(tmp_path / "first", tiny_folder.parent, pairs, repair=repair)
    with pytest.raises(Cancelled):
        first.go(stopping=lambda: len(first.all(Measured)) == 4)
    second = Run(tmp_path / "second", tiny_folder.parent, pairs, resume=4, repair=repair)
    for step in ("0", "4"):
        shutil.copytree(first.folder / RESUME / step, second.folder / STATE, dirs_exist_ok=True)
    assert second.go().manifest() == whole.manifest()


def test_blocks_are_reconstructed_once_and_the_state_holds_what_came_of_it(
    undisturbed: Run, tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    prune = {**SPEC["prune"], "reconstruct_epochs": 2, "reconstruct_learning_rate": 1e-3}
    whole = Run(tmp_path / "whole", tiny_folder.parent, tiny_texts[:40], prune=prune).go()
    phases = list(dict.fromkeys(each.phase for each in whole.said if isinstance(each, Progressed)))
    assert [*map(str, phases)] == ["loading", "evaluating", "pruning", "reconstructing", "training", "exporting"]
    scores = [run.said[-1].scores["pruned"] for run in (whole, undisturbed)]  # type: ignore[union-attr]
    assert scores[0] != scores[1]
    again = Run(tmp_path / "again", tiny_folder.parent, tiny_texts[:40], prune=prune, resume=0)
    shutil.copytree(whole.folder / RESUME / "0", again.folder / STATE)
    again.go()
    assert not [each for each in again.said if isinstance(each, Progressed) and each.phase == "reconstructing"]
    assert again.manifest() == whole.manifest()
    assert "by wanda with reconstruction" in (whole.folder / RESULT / "README.md").read_text()


def test_a_conversation_for_a_model_without_chat_template_is_refused_before_the_weights_are_read(
    tmp_path: Path, tiny_folder: Path
) -> None:
    models = tmp_path / "models"
    shutil.copytree(tiny_folder, models / "tiny")
    (models / "tiny" / "model.safetensors").write_bytes(b"none")
    chats = [
        {"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": "yes"}]}
        for word in ("one", "two")
    ]
    with pytest.raises(ConfigError, match="must have a chat template"):
        Run(tmp_path / "run", models, chats).go()


def test_a_text_that_is_too_short_is_refused_before_the_weights_are_read(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    models = tmp_path / "models"
    shutil.copytree(tiny_folder, models / "tiny")
    (models / "tiny" / "model.safetensors").write_bytes(b"none")
    with pytest.raises(DataError, match="must fill one window"):
        Run(tmp_path / "run", models, ["a few words", "and some others"]).go()


def test_a_job_that_only_prunes_is_judged_twice_and_trains_nothing(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    run = Run(
        tmp_path / "run",
        tiny_folder.parent,
        tiny_texts[:40],
        prune={"method": "magnitude"},
        repair={"method": "none"},
    ).go()
    result = run.said[-1]
    assert isinstance(result, Finished)
    assert set(result.scores) == {"dense", "pruned"}
    assert result.measured["grown_zeros"] == 0
    assert not run.all(Measured)


def test_a_job_in_a_pattern_evolves_within_it(tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]) -> None:
    run = Run(tmp_path / "run", tiny_folder.parent, tiny_texts[:40], sparsity=0.5, pattern="2:4").go()
    result = run.said[-1]
    assert isinstance(result, Finished)
    assert result.measured["grown_zeros"] > 0
    for name, tensor in load_file(run.folder / RESULT / "model.safetensors").items():
        if "_proj" in name:
            assert ((tensor != 0).view(-1, 4).sum(1) <= 2).all()
