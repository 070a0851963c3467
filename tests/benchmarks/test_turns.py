"""The sides of a comparison, each in a process of its own."""

import multiprocessing
from typing import Any

import pytest

from benchmarks.turns import answer, take_turns


def serve(number: int, pipe: Any) -> None:
    """Answer with a number. A negative one fails while it loads."""
    if number < 0:
        raise SystemExit(1)
    answer(pipe, lambda: number, lambda: 10 * number)


def test_the_sides_take_turns() -> None:
    assert take_turns(serve, {"one": (1,), "two": (2,)}, rounds=2) == (
        {"one": [1, 1], "two": [2, 2]},
        {"one": 10, "two": 20},
    )


@pytest.mark.timeout(60)
def test_if_a_side_fails_while_it_loads_the_others_end_too() -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises(SystemExit, match="The process of 'two' has ended early"):
        take_turns(serve, {"one": (1,), "two": (-1,)}, rounds=1)
    for process in set(multiprocessing.active_children()) - before:
        process.join(30)
        assert process.exitcode is not None
