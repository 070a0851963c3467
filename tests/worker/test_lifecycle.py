"""The states of an attempt and its deadlines."""

import pytest

from worker import lifecycle
from worker.lifecycle import TRANSITIONS, Lifecycle, State


def test_every_state_leads_to_the_end_and_nothing_follows_it() -> None:
    assert set(TRANSITIONS) == set(State)
    assert all(State.ENDED in following for state, following in TRANSITIONS.items() if state is not State.ENDED)
    assert not TRANSITIONS[State.ENDED]


def test_only_listed_transitions_are_possible() -> None:
    attempt = Lifecycle()
    with pytest.raises(ValueError, match="cannot move from fetching to uploading"):
        attempt.move(State.UPLOADING)
    for state in (State.TRAINING, State.UPLOADING, State.ENDED):
        attempt.move(state)
        assert attempt.state is state
    assert attempt.ended
    with pytest.raises(ValueError, match="cannot move from ended to training"):
        attempt.move(State.TRAINING)


def test_a_shutdown_shortens_the_deadline_of_a_pause_and_a_pause_does_not_extend_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("worker.lifecycle.time.monotonic", lambda: now)
    attempt = Lifecycle()
    assert not attempt.stop_requested
    assert attempt.request_stop(draining=False)
    assert attempt.stop_requested
    assert attempt.release_by == now + lifecycle.PAUSE_SECONDS
    assert not attempt.request_stop(draining=True), "it was requested before"
    assert attempt.release_by == now + lifecycle.DRAIN_SECONDS
    attempt.request_stop(draining=False)
    assert not attempt.release_is_due
    now += lifecycle.DRAIN_SECONDS + 1
    assert attempt.release_is_due


def test_a_hang_has_a_deadline_of_its_own_until_it_is_withdrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("worker.lifecycle.time.monotonic", lambda: now)
    attempt = Lifecycle()
    for _ in range(2):
        assert not attempt.stacks_are_due
        assert attempt.report_hang()
        assert not attempt.report_hang(), "it was reported before"
        assert (attempt.stacks_are_due, attempt.stop_requested) == (False, False)
        now += lifecycle.STACK_SECONDS + 1
        assert attempt.stacks_are_due
        attempt.withdraw_hang()
