"""Runs a function on many items in threads, and yields the results in order, with few items in memory."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def default_threads() -> int:
    """Return the number of cores that this process may use, at most 16."""
    return min(len(os.sched_getaffinity(0)), 16)


def ordered(function: Callable[[In], Out], items: Iterable[In], threads: int) -> Generator[Out]:
    """Yield `function(item)` for every item, in their order. At most `2 * threads` items are in work at a time.

    Close the generator if not all results are taken. Then the other items are not started.
    """
    running: deque[Future[Out]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                running.append(pool.submit(function, item))
                if len(running) >= 2 * threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
