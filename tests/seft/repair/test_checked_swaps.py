"""Laws of swaps in a whole repair: the windows that check an event, which no step reads, and the steps with events."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from seft.config import RepairConfig
from seft.data.packing import Packed
from seft.loss import TokenLoss
from seft.repair import Repair
from seft.repair.nonzeros import NonzeroLinear
from seft.repair.swaps import CHECK_WINDOWS
from seft.report import Evolved
from tests.seft.architectures import ARCHITECTURES
from tests.seft.repair.repairing import PRUNED, TOKENS, pruned_tiny, short, weights, zero_smallest

WINDOWS = Packed.plain(TOKENS[:1984].view(62, 32))


def swapping(**changes: object) -> RepairConfig:
    """Return a configuration of eight steps, with swaps after steps 2, 4 and 6."""
    return short(density="all", **{"swap_tokens": 192, "micro_batch": 3, **changes})


def started(text: Packed, settings: RepairConfig) -> tuple[Any, Repair]:
    """Return the pruned model and its new repair."""
    model = pruned_tiny()
    return model, Repair(model, text, settings, pruned=PRUNED)


def test_an_event_is_checked_by_the_mean_loss_of_the_last_windows() -> None:
    text = replace(WINDOWS, trained=WINDOWS.trained & (WINDOWS.positions % 3 == 1))
    model, repair = started(text, swapping())
    repair.advance()
    last = text[-CHECK_WINDOWS:]
    with torch.no_grad():
        expected = float(TokenLoss(model)(last).sum()) / last.predictions
        found = repair._method._check()  # type: ignore[attr-defined]
    assert found == pytest.approx(expected, rel=1e-6)


def test_no_step_reads_the_windows_that_check_events() -> None:
    settings = swapping(steps=40)
    _, repair = started(WINDOWS, settings)
    read = {tuple(row) for step in range(1, 41) for row in repair._batch(step)[0].tokens.tolist()}
    assert read == {tuple(row) for row in WINDOWS.tokens[:-CHECK_WINDOWS].tolist()}


@pytest.mark.parametrize("contrary", [False, True])
def test_an_event_is_undone_exactly_if_it_raises_the_loss_of_the_windows_that_check_it(*, contrary: bool) -> None:
    """All windows repeat one token. If the last ones end with another token, learning the others raises their loss."""
    text = Packed.plain(torch.full((20, 32), 5))
    text.tokens[-CHECK_WINDOWS:, -1] = 7 if contrary else 5
    trained = text.trained.clone()
    trained[-CHECK_WINDOWS:, :-1] = False
    settings = swapping(steps=4, learning_rate=1e-5)
    _, repair = started(replace(text, trained=trained), settings)
    events = [report for _ in range(4) for report in repair.advance() if isinstance(report, Evolved)]
    assert [(event.step, event.undone) for event in events] == [(2, contrary)]
    assert events[0].grown


def test_an_event_after_which_the_loss_is_not_a_number_is_undone() -> None:
    model, repair = started(WINDOWS, swapping(steps=4))
    repair.advance()
    before = weights(model)
    repair._method._check = iter([1.0, math.nan]).__next__  # type: ignore[attr-defined]
    (event,) = (report for report in repair.advance() if isinstance(report, Evolved))
    assert event.undone
    assert event.grown
    after = weights(model)
    assert all(torch.equal(after[name] == 0, weight == 0) for name, weight in before.items())


def test_a_swap_compares_experts_by_the_tokens_that_reach_all_linears(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ARCHITECTURES["mixtral"].model()
    model.set_experts_implementation("eager")
    zero_smallest(model)
    repair = Repair(model, TOKENS, swapping(), pruned=PRUNED)
    linears: dict[str, NonzeroLinear] = repair._method.linears  # type: ignore[attr-defined]
    corrected, found = NonzeroLinear._corrected_outputs, list[tuple[NonzeroLinear, float]]()

    def correct(linear: NonzeroLinear, batch_tokens: float) -> Tensor:
        found.append((linear, batch_tokens))
        return corrected(linear, batch_tokens)

    monkeypatch.setattr(NonzeroLinear, "_corrected_outputs", correct)
    for _ in range(2):
        repair.advance()
    tokens = [linear.tokens for linear in linears.values()]
    assert [each for each, _ in found] == list(linears.values())
    assert {number for _, number in found} == {max(tokens)}
    assert min(tokens) < max(tokens)
