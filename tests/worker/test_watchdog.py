"""How long a training process may be silent: long enough for slow steps, large datasets and large states."""

from collections.abc import Callable

import pytest

from core.states import Phase
from worker.protocol import Progressed, Reading
from worker.watchdog import (
    LOOK_SECONDS,
    RECORD_BYTES_PER_SECOND,
    RECORD_SECONDS,
    REMEMBERED,
    SILENT_SECONDS,
    STATE_BYTES_PER_SECOND,
    STEP_MEDIANS,
    STEP_SECONDS,
    Watchdog,
)


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that lets a number of seconds pass."""
    now = 0.0

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("worker.watchdog.time.monotonic", lambda: now)
    return wait


def test_a_step_may_take_ten_times_as_long_as_usual_however_long_that_is(wait: Callable[[float], None]) -> None:
    watchdog, usual = Watchdog(lambda: 0, lambda: 0), STEP_SECONDS / 2
    for step in range(4):
        watchdog.record(Progressed(phase=Phase.TRAINING, progress=0.5, step=step))
        wait(usual)
    wait((STEP_MEDIANS - 1) * usual - 1)
    assert watchdog.overdue is None
    wait(2)
    assert watchdog.overdue is not None
    assert not watchdog.overdue.user_error


def test_reports_of_an_evaluation_are_not_steps(wait: Callable[[float], None]) -> None:
    watchdog, usual = Watchdog(lambda: 0, lambda: 0), STEP_SECONDS / 2
    for step in range(4):
        watchdog.record(Progressed(phase=Phase.TRAINING, progress=0.5, step=step))
        wait(usual)
    for _ in range(REMEMBERED):
        watchdog.record(Progressed(phase=Phase.TRAINING, progress=0.5, step=3))
        wait(1)
    wait((STEP_MEDIANS - 1) * usual)
    assert watchdog.overdue is None


def test_a_step_may_take_longer_while_its_state_is_written_and_only_then(wait: Callable[[float], None]) -> None:
    size = 0
    watchdog = Watchdog(lambda: 0, lambda: size)
    for step in range(4):
        watchdog.record(Progressed(phase=Phase.TRAINING, progress=0.5, step=step))
        wait(1)
    size = 1000 * STATE_BYTES_PER_SECOND
    wait(STEP_SECONDS + 998)
    assert watchdog.overdue is None
    wait(2)
    assert watchdog.overdue is not None
    watchdog.record(Progressed(phase=Phase.TRAINING, progress=0.5, step=4))
    size = 0
    wait(STEP_SECONDS + 1)
    assert watchdog.overdue is not None


def test_a_process_may_be_silent_for_longer_while_a_state_is_written(wait: Callable[[float], None]) -> None:
    watchdog = Watchdog(lambda: 0, lambda: 1000 * STATE_BYTES_PER_SECOND)
    watchdog.record(Progressed(phase=Phase.PRUNING, progress=0.5, step=0))
    wait(SILENT_SECONDS + 999)
    assert watchdog.overdue is None
    wait(2)
    assert watchdog.overdue is not None


def test_a_record_may_take_as_long_as_reading_all_datasets(wait: Callable[[float], None]) -> None:
    watchdog = Watchdog(lambda: 1000 * RECORD_BYTES_PER_SECOND, lambda: 0)
    watchdog.record(Reading(records=0))
    wait(RECORD_SECONDS + 999)
    assert watchdog.overdue is None
    wait(2)
    assert watchdog.overdue is not None
    assert watchdog.overdue.user_error


def test_time_in_which_the_worker_did_not_look_for_messages_is_not_silence(wait: Callable[[float], None]) -> None:
    watchdog = Watchdog(lambda: 0, lambda: 0)
    watchdog.record(Reading(records=1))
    wait(10 * RECORD_SECONDS)
    watchdog.look()
    assert watchdog.overdue is None
    for _ in range(int(RECORD_SECONDS)):
        wait(1)
        watchdog.look()
    assert watchdog.overdue is not None


def test_a_worker_that_looks_seldom_detects_a_hang_later(wait: Callable[[float], None]) -> None:
    watchdog = Watchdog(lambda: 0, lambda: 0)
    for step in range(4):
        watchdog.record(Progressed(phase=Phase.TRAINING, progress=0.5, step=step))
    for _ in range(int(STEP_SECONDS / LOOK_SECONDS)):
        assert watchdog.overdue is None
        wait(10 * LOOK_SECONDS)
        watchdog.look()
    wait(1)
    assert watchdog.overdue is not None


def test_a_message_is_never_counted_as_later_than_now(wait: Callable[[float], None]) -> None:
    watchdog = Watchdog(lambda: 0, lambda: 0)
    wait(10 * SILENT_SECONDS)
    watchdog.touch()
    watchdog.look()
    for _ in range(int(SILENT_SECONDS) + 1):
        wait(1)
        watchdog.look()
    assert watchdog.overdue is not None
