"""With every method, training leaves the best evaluated state in the model, also after interruptions."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from seft.config import RepairConfig, RepairMethod
from seft.errors import ConfigError, TrainError
from seft.repair import Repair
from seft.repair.best import Best
from seft.report import Evaluated, Report
from tests.seft.repair.repairing import (
    PRUNED,
    TOKENS,
    assert_resumes,
    logits,
    pruned_tiny,
    repaired,
    same_bits,
    short,
    weights,
)

every = pytest.mark.parametrize("method", RepairMethod)
LOSSES = {2: 3.0, 4: 2.0, 6: 2.0, 8: 2.5}
"""Losses by step; an equal loss is not better. SEFT has an event after step 6."""


class Judging:
    """A repair whose held-out evaluation returns the given loss of each step."""

    def __init__(self, config: RepairConfig, losses: dict[int, float], dtype: torch.dtype = torch.float32) -> None:
        self.model: Any = pruned_tiny(dtype)
        self.repair = Repair(self.model, TOKENS, config, pruned=PRUNED, held_out_loss=lambda: losses[self.repair.step])

    def finish(self) -> "Judging":
        self.repair.run()
        self.repair.finish()
        return self


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_best_state_is_left_bit_for_bit(method: RepairMethod, dtype: torch.dtype) -> None:
    judging = Judging(short(method=method, evaluate_interval=2), LOSSES, dtype)
    judging.repair.run()
    last = logits(judging.model)
    judging.repair.finish()
    model, expected = repaired(short(method=method), 4, dtype)
    assert not torch.equal(logits(model), last)
    expected.finish()
    assert (judging.repair.step, judging.repair.kept_step) == (8, 4)
    assert same_bits(weights(judging.model), weights(model))
    assert judging.repair.grown_zeros == expected.grown_zeros


@every
def test_a_last_state_that_is_the_best_is_the_same_as_without_a_judge(method: RepairMethod) -> None:
    finished = Judging(short(method=method, evaluate_interval=3), {3: 3.0, 6: 2.0, 8: 1.0}).finish()
    model, expected = repaired(short(method=method))
    expected.finish()
    assert finished.repair.kept_step == 8
    assert same_bits(weights(finished.model), weights(model))


@every
@pytest.mark.parametrize(("patience", "last"), [(0, 8), (1, 6)])
def test_a_resumed_run_ends_at_the_same_step_with_the_same_bits(
    tmp_path: Path, method: RepairMethod, patience: int, last: int
) -> None:
    config = short(method=method, evaluate_interval=2, patience=patience)

    def start() -> tuple[Any, Repair]:
        judging = Judging(config, LOSSES)
        return judging.model, judging.repair

    _, repair = assert_resumes(start, tmp_path)
    assert (repair.step, repair.kept_step) == (last, 4)


@pytest.mark.parametrize(
    ("losses", "patience", "last", "kept"),
    [
        ([5, 4, 3, 2], 1, 8, 8),
        ([5, 6, 4, 5], 2, 8, 6),
        ([5, 6, 5, 4], 2, 6, 2),
        ([5, 6, 4, 3], 1, 4, 2),
        ([float("inf"), 6, 7, 7], 3, 8, 4),
    ],
)
def test_training_stops_after_patience_evaluations_without_a_better_one(
    losses: list[float], patience: int, last: int, kept: int
) -> None:
    reports: list[Report] = []
    judging = Judging(
        short(evaluate_interval=2, patience=patience), dict(zip(itertools.count(2, 2), losses, strict=False))
    )
    judging.repair.run(reports.append)
    assert (judging.repair.step, judging.repair.kept_step) == (last, kept)
    evaluations = [(report.step, report.held_out_loss) for report in reports if isinstance(report, Evaluated)]
    assert evaluations == [*zip(range(2, last + 1, 2), losses, strict=False)]


def test_a_loss_that_is_not_a_number_is_an_error() -> None:
    with pytest.raises(TrainError, match="after step 2 it is nan"):
        Judging(short(evaluate_interval=2), {2: float("nan")}).repair.run()


def test_the_earlier_best_state_is_freed_before_the_next_one_is_copied() -> None:
    losses = iter([3.0, 2.0, 1.0])
    best, kept = Best(short(evaluate_interval=1), lambda: next(losses)), list[int]()

    def tensors() -> dict[str, torch.Tensor]:
        kept.append(len(best.tensors))
        return {"a": torch.full((2,), float(len(kept)))}

    for step in (1, 2, 3):
        best.evaluate(step, tensors)
    assert kept == [0, 0, 0]
    assert best.tensors["a"].tolist() == [3, 3]


def test_a_judge_is_required_exactly_if_there_are_evaluations() -> None:
    with pytest.raises(ConfigError, match="held_out must be given"):
        repaired(short(evaluate_interval=2), 0)
    with pytest.raises(ConfigError, match="held_out must not be set"):
        repaired(short(), 0, held_out_loss=lambda: 0.0)
