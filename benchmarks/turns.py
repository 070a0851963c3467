"""Runs the sides of a comparison in turn, so that a noisy machine slows all of them.

Each side has a process of its own, so that its memory is its own.
"""

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch.multiprocessing import get_context


def take_turns(
    side: Callable[..., None], sides: Mapping[str, tuple[Any, ...]], rounds: int
) -> tuple[dict[str, list[Any]], dict[str, int]]:
    """Return the results of all rounds, and the bytes of memory that each side reports, both by the name of the side.

    `side` is called in a new process for each side, with its arguments and a pipe, and calls `answer` with that pipe.
    If a process of a side ends early, this process exits with a message, and the other sides end too.
    """
    context = get_context("spawn")
    pipes: dict[str, Any] = {}
    results: dict[str, list[Any]] = {name: [] for name in sides}
    try:
        for name, arguments in sides.items():
            pipes[name], theirs = context.Pipe()
            context.Process(target=side, args=(*arguments, theirs)).start()
            theirs.close()  # so that the end of the process is noticed
            _receive(name, pipes[name])  # one model is loaded at a time
        for _ in range(rounds):
            for name, pipe in pipes.items():
                pipe.send("run")
                results[name].append(_receive(name, pipe))
        for pipe in pipes.values():
            pipe.send("end")
        return results, {name: _receive(name, pipe) for name, pipe in pipes.items()}
    finally:
        for pipe in pipes.values():
            pipe.close()  # ends a side that still waits


def _receive(name: str, pipe: Any) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        sys.exit(f"The process of {name!r} has ended early. Its error is above.")


def answer(pipe: Any, run: Callable[[], Any], memory: Callable[[], int]) -> None:
    """Call `run` on each request and send its result, in the process of a side. At the end send the memory.

    Ends early if another side has failed.
    """
    pipe.send("ready")
    with suppress(EOFError):
        while pipe.recv() == "run":
            pipe.send(run())
        pipe.send(memory())


def ratio_to_first(seconds: Mapping[str, Sequence[float]], side: str) -> float:
    """Return the median of a side divided by the median of the first side."""
    return statistics.median(seconds[side]) / statistics.median(next(iter(seconds.values())))


def resident_bytes(process: int | Literal["self"], field: Literal["VmRSS", "VmHWM"] = "VmRSS") -> int:
    """Return the resident bytes of a process on Linux, with mapped files: at present (VmRSS) or at most (VmHWM)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def peak_bytes(device: str) -> int:
    """Return the peak bytes since the start or the last `forget_peak`.

    They count the memory of this process, which is known on Linux only. If the device is not the CPU, they count the
    tensors on it instead.
    """
    return resident_bytes("self", "VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated(device)


def forget_peak(device: str) -> None:
    """Make the present memory the peak memory."""
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")
    else:
        torch.cuda.reset_peak_memory_stats(device)
