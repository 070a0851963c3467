"""A whole repair: reports, bits, resuming, rejected states, cancelling, finishing."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from seft.config import Pattern, RepairMethod
from seft.config.rates import RATES
from seft.data.packing import Packed, cut_windows
from seft.errors import Cancelled, ConfigError, DataError, StateError, TrainError
from seft.models.targets import target_linears
from seft.repair import Repair
from seft.repair.state import outdated
from seft.report import Evolved, Progress, Report, Step
from tests.seft.repair.repairing import (
    PRUNED,
    TOKENS,
    by_magnitude,
    nonzeros,
    pruned_tiny,
    repaired,
    same_bits,
    short,
    weights,
)


def test_grown_zeros_are_counted_against_the_pruned_weights() -> None:
    model = pruned_tiny()
    before = weights(model)
    repair = Repair(model, TOKENS, short())
    repair.run()
    after = weights(model)
    assert repair.grown_zeros == sum(int(((before[name] == 0) & (after[name] != 0)).sum()) for name in before)


def test_steps_and_events_are_reported() -> None:
    reports: list[Report] = []
    model = pruned_tiny()
    budgets = nonzeros(model)
    Repair(model, TOKENS, short()).run(reports.append)
    steps = [report for report in reports if isinstance(report, Step)]
    assert [report.step for report in steps] == list(range(1, 9))
    assert all(report.loss > 0 and report.tokens_per_second > 0 for report in steps)
    assert [report.step for report in reports if isinstance(report, Evolved)] == [1, 3, 6]
    assert [report.done for report in reports if isinstance(report, Progress)] == list(range(1, 9))
    for event in (report for report in reports if isinstance(report, Evolved)):
        for name, change in event.layers.items():
            assert change.reactivated <= max(1, round(0.01 * budgets[name]))
    opening = next(report for report in reports if isinstance(report, Evolved))
    assert opening.grown >= opening.dropped > opening.reactivated > 0
    assert opening.pruned == opening.reactivated


def test_micro_batches_do_not_change_the_gradient() -> None:
    whole, parts = (weights(repaired(short(micro_batch=size, settle=1.0), steps=1)[0]) for size in (3, 1))
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=1e-5, rtol=0)


def test_a_state_is_small(tmp_path: Path) -> None:
    model, repair = repaired(short(density=0.005), 4)
    repair.save(tmp_path)
    dense = sum(linear.weight.nbytes for linear in target_linears(model).values())
    assert (tmp_path / "repair.safetensors").stat().st_size < 0.25 * dense


def test_a_state_is_on_the_disk_when_save_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are flushed after their last byte is written, and the folder after its last file is made."""
    _, repair = repaired(short(), 0)
    flushed = list[tuple[int, int]]()
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append((os.fstat(file).st_ino, os.fstat(file).st_size)))
    repair.save(folder := tmp_path / "state")
    places = [*folder.iterdir(), folder]
    assert {path.name for path in places} == {"repair.safetensors", "repair.json", "state"}
    assert set(flushed) == {(path.stat().st_ino, path.stat().st_size) for path in places}
    assert flushed[-1][0] == folder.stat().st_ino


def test_a_state_of_another_repair_is_rejected(tmp_path: Path) -> None:
    repaired(short(), 3)[1].save(tmp_path)
    other = pruned_tiny()
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.mul_(2)
    windows = Packed.plain(cut_windows(TOKENS, 32))
    answers = replace(windows, trained=windows.trained & (windows.positions > 9))
    parted = replace(windows, positions=windows.positions % 16)
    strangers = [
        Repair(pruned_tiny(), answers, short(), pruned=PRUNED),
        Repair(pruned_tiny(), parted, short(), pruned=PRUNED),
        Repair(pruned_tiny(), TOKENS, short(seed=1), pruned=PRUNED),
        Repair(pruned_tiny(), TOKENS, short(method=RepairMethod.FIXED_MASK), pruned=PRUNED),
        Repair(pruned_tiny(), TOKENS[100:], short(), pruned=PRUNED),
        Repair(pruned_tiny(torch.bfloat16), TOKENS, short(), pruned=PRUNED),
        Repair(pruned_tiny(), TOKENS, short(), pruned=replace(PRUNED, seed=1)),
        Repair(other, TOKENS, short(), pruned=PRUNED),
    ]
    for stranger in strangers:
        with pytest.raises(StateError, match="must have the"):
            stranger.load(tmp_path)
    with pytest.raises(StateError, match="readable"):
        Repair(pruned_tiny(), TOKENS, short()).load(tmp_path / "nothing")


def test_a_state_resumes_with_settings_that_need_less_memory(tmp_path: Path) -> None:
    repaired(short(), 3)[1].save(tmp_path)
    for change in ({"micro_batch": 1}, {"activation_checkpointing": True}):
        config = short(**change)
        assert outdated(tmp_path, config) is None
        repair = Repair(pruned_tiny(), TOKENS, config, pruned=PRUNED)
        repair.load(tmp_path)
        assert repair.step == 3


def test_a_state_of_software_with_another_auto_rate_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = short(learning_rate="auto")
    repaired(config, 3)[1].save(tmp_path)
    assert outdated(tmp_path, config) is None
    with monkeypatch.context() as wider:
        wider.setattr("seft.repair.state.RATED_WIDTH", 600)
        assert "must have the rated_width of this repair" in str(outdated(tmp_path, config))
    monkeypatch.setitem(RATES, RepairMethod.SEFT, 7e-3)
    assert "must have the rate of this repair" in str(outdated(tmp_path, config))
    with pytest.raises(StateError, match="must have the rate"):
        Repair(pruned_tiny(), TOKENS, config, pruned=PRUNED).load(tmp_path)


@pytest.mark.parametrize("content", [None, b"half of a file"])
def test_a_state_without_readable_tensors_is_rejected(tmp_path: Path, content: bytes | None) -> None:
    _, repair = repaired(short(), 3)
    repair.save(tmp_path)
    tensors = tmp_path / "repair.safetensors"
    tensors.unlink() if content is None else tensors.write_bytes(content)
    with pytest.raises(StateError, match=r"readable repair\.safetensors"):
        Repair(pruned_tiny(), TOKENS, short(), pruned=PRUNED).load(tmp_path)


def test_only_a_fresh_repair_loads_a_state(tmp_path: Path) -> None:
    _, repair = repaired(short(), 3)
    repair.save(tmp_path)
    with pytest.raises(StateError, match="new repair"):
        repair.load(tmp_path)


def test_a_cancelled_run_can_be_continued(tmp_path: Path) -> None:
    def cancel(report: Report) -> None:
        if isinstance(report, Step) and report.step == 3:
            raise Cancelled

    model = pruned_tiny()
    repair = Repair(model, TOKENS, short())
    with pytest.raises(Cancelled):
        repair.run(cancel)
    assert repair.step == 3
    repair.run()
    assert same_bits(weights(model), weights(repaired(short())[0]))


def test_a_loss_that_is_not_finite_is_an_error_and_changes_nothing() -> None:
    model, repair = repaired(short(), 3)
    before = weights(model)
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.inf)
    with pytest.raises(TrainError, match="step 4"):
        repair.advance()
    assert same_bits(weights(model), before)


def test_text_shorter_than_one_window_is_rejected() -> None:
    with pytest.raises(DataError, match="it has 31"):
        Repair(pruned_tiny(), TOKENS[:31], short())


def test_finish_restores_the_model_except_its_weights() -> None:
    model, repair = repaired(short(), 4)
    windows = TOKENS[:64][None]
    trained = model(input_ids=windows).logits
    assert not any(parameter.requires_grad for parameter in model.parameters())
    repair.finish()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(model(input_ids=windows).logits, trained)


@pytest.mark.parametrize(
    "changes",
    [{}, {"density": "all"}, {"method": RepairMethod.LORA_REPRUNE, "density": 0.05}, {"distill_weight": 0.5}],
)
def test_a_repair_that_cannot_start_leaves_the_model_as_it_was(changes: dict[str, object]) -> None:
    model = pruned_tiny()
    pruned = None if "method" in changes else by_magnitude(Pattern(2, 4))
    with pytest.raises(ConfigError):
        Repair(model, TOKENS, short(**changes), pruned=pruned)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any("forward" in vars(module) for module in model.modules())
