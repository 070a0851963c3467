"""How long a request is repeated, with a clock that only the test moves."""

from types import SimpleNamespace

import pytest

from worker.retries import LONG_TRY_SECONDS, MOST_LONG_TRIES, RETRY_SECONDS, retry


class Server:
    """Each try takes the next number of seconds. It fails if that is negative, and succeeds otherwise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *tries: float) -> None:
        self.now, self.tries, self.finished = 0.0, list(tries), 0
        monkeypatch.setattr("worker.retries.time", SimpleNamespace(monotonic=lambda: self.now))

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def answer(self) -> str:
        seconds = self.tries.pop(0)
        self.now += abs(seconds)
        if seconds < 0:
            raise OSError("no answer")
        return "answer"

    def ask(self) -> str:
        return retry(self.answer, lambda error: isinstance(error, OSError), self.wait, lambda: self.finished)


LONG = LONG_TRY_SECONDS + 1


@pytest.mark.parametrize("tries", [(-LONG, 1.0), (-1.0, -LONG, -1.0, 1.0), (-LONG, -LONG, -LONG, 1.0)])
def test_a_long_transfer_that_fails_is_repeated(monkeypatch: pytest.MonkeyPatch, tries: tuple[float, ...]) -> None:
    server = Server(monkeypatch, *tries)
    assert server.ask() == "answer"
    assert not server.tries


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch, *[-60.0] * 100)
    with pytest.raises(OSError, match="no answer"):
        server.ask()
    assert RETRY_SECONDS < server.now - 60 <= RETRY_SECONDS + 70


def test_a_long_transfer_that_always_fails_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch, *[-LONG] * 100)
    with pytest.raises(OSError, match="no answer"):
        server.ask()
    assert len(server.tries) == 100 - MOST_LONG_TRIES - 1


def test_a_short_outage_after_long_tries_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch, *[-LONG] * MOST_LONG_TRIES, *[-1.0] * 9, 1.0)
    assert server.ask() == "answer"


@pytest.mark.parametrize("seconds", [60.0, LONG])
def test_a_transfer_that_finishes_further_files_is_repeated(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    class Finishing(Server):
        def answer(self) -> str:
            self.finished += len(self.tries) % 5 == 0
            return super().answer()

    server = Finishing(monkeypatch, *[-seconds] * 99, 1.0)
    assert server.ask() == "answer"
