"""How long the client waits before a retry, and how often it opens a stream that breaks."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from unittest.mock import Mock

import pytest

from seft.client.errors import Unreachable
from seft.client.operations import Operations
from seft.client.retries import LONGEST, tried
from seft.client.steps import Open, Pause, Read, Reply, Request, Send

DONE = Reply(200, {}, b"", "/jobs")


def busy(retry_after: str | None = None) -> Reply:
    return Reply(503, {} if retry_after is None else {"Retry-After": retry_after}, b"", "/jobs")


def pauses(replies: Sequence[Reply], seconds: Sequence[float]) -> list[float]:
    """Return the pauses between the tries of a request that gets these replies. All replies are used."""
    waits, remaining = list[float](), list(replies)

    def run() -> None:
        steps, result = tried(Send(Request("GET", "/jobs")), seconds), None
        while True:
            step = steps.send(result)
            if isinstance(step, Pause):
                waits.append(step.seconds)
            result = None if isinstance(step, Pause) else remaining.pop(0)

    with pytest.raises(StopIteration) as end:
        run()
    assert (end.value.value, remaining) == (replies[-1], [])
    return waits


def test_the_client_waits_exactly_as_long_as_the_server_asks() -> None:
    assert pauses([busy("7"), busy("0"), DONE], [100.0, 100.0]) == [7.0, 0.0]


def test_a_pause_that_the_server_does_not_name_is_shortened_by_at_most_a_half() -> None:
    waits = [pauses([busy(), busy("soon"), DONE], [8.0, 4.0]) for _ in range(50)]
    assert all(4.0 <= first <= 8.0 and 2.0 <= second <= 4.0 for first, second in waits)
    assert len({first for first, _ in waits}) > 1


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> datetime:
    """The time of a clock that stands still."""
    moment = datetime(2015, 10, 21, 7, 28, tzinfo=UTC)
    monkeypatch.setattr("seft.client.retries.datetime", Mock(now=lambda _: moment))
    return moment


@pytest.mark.parametrize("seconds", [30, 60, -60])
def test_the_client_waits_until_the_date_in_retry_after(now: datetime, seconds: int) -> None:
    date = format_datetime(now + timedelta(seconds=seconds), usegmt=True)
    assert pauses([busy(date), DONE], [100.0]) == [max(0, seconds)]


def test_a_retry_after_that_is_too_long_fails_at_once(now: datetime) -> None:
    date = format_datetime(now + timedelta(hours=1), usegmt=True)
    for value in (f"{LONGEST + 1:.0f}", date):
        assert pauses([busy(value)], [1.0]) == []


def streams_left(streams: Sequence[Sequence[bytes | None]], seconds: Sequence[float]) -> int:
    """Return how many of these streams of events the client does not open before it gives up or the job has ended.

    A stream brings its chunks. None breaks it, and an empty chunk is its end. After the last stream the job has ended.
    """
    (caller := Operations()).pauses = seconds
    remaining, chunks = list(streams), list[bytes | None]()
    steps = Operations.live_events.steps(caller, "job_1")
    step = next(steps)
    with suppress(Unreachable, StopIteration):
        while True:
            match step:
                case Open() if remaining:
                    chunks = list(remaining.pop(0))
                    step = steps.send(Reply(200, {"Content-Type": "text/event-stream"}, b"", "/events"))
                case Open():
                    steps.send(Reply(204, {}, b"", "/events"))
                case Read() if (chunk := chunks.pop(0)) is not None:
                    step = steps.send(chunk)
                case Read():
                    step = steps.throw(Unreachable("It broke."))
                case _:
                    step = steps.send(None)
    return len(remaining)


def test_only_streams_that_break_one_after_another_and_bring_nothing_are_counted() -> None:
    seconds = (1.0, 1.0)
    silent, comment, ended = [None], [b": still here\n\n", None], [b'data: {"id": 1}\n\n', b""]
    assert streams_left([silent] * 9, seconds) == 9 - (len(seconds) + 1)
    assert streams_left([comment] * 9, seconds) == 0
    assert streams_left([silent, silent, ended] * 9, seconds) == 0
    assert streams_left([silent, silent, comment, silent, silent, silent, silent], seconds) == 1
