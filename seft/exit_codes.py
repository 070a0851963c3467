"""How the command `seft` ends: its exit codes, and for a command of the library one line about an error."""

import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType
from typing import Any

from seft.errors import (
    DISK_FULL,
    BitsDifferError,
    EvaluateError,
    PruneError,
    RecordFileError,
    SeftError,
    SourceError,
    TrainError,
    VerifyError,
    is_device_memory_full,
    is_host_memory_full,
)

EXTRA = "Run pip install '.[torch]' in the folder of the repository."
SIGNALS = [signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if name in signal.Signals.__members__]
"""Signals after which a command removes its unfinished files and ends. SIGHUP comes when the terminal is closed."""


class Exit(IntEnum):
    """Exit codes of the command `seft`."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> "Exit":
        """Create an exit code with its meaning."""
        member = int.__new__(cls, value)
        member._value_, member.meaning = value, meaning
        return member

    DONE = 0, "Success."
    FAILED = (
        1,
        "The command ran and failed: the job did not succeed, the dataset is invalid, pruning, training, evaluation or"
        " verification failed, or the memory or the disk is full.",
    )
    USAGE = 2, "The command line, a setting, an input file, the address or the key is missing or invalid."
    UNREACHABLE = 3, "The service, the hub or a storage does not answer, or another server answers."
    REFUSED = 4, "The service rejected the request. The message names the field, the rule, the value and the way out."
    NOT_INTACT = 5, "A downloaded file differs from the published one."
    HUNG_UP = 129, "SIGHUP, in a command that works on this machine. Unfinished files were removed."
    INTERRUPTED = 130, "Ctrl-C. A job continues. Run a download again to resume it."
    ENDED = 143, "SIGTERM, in a command that works on this machine. Unfinished files were removed."


@contextmanager
def stoppable() -> Iterator[list[int]]:
    """Let Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt. The yielded list then has the exit code.

    The list is needed because some libraries convert the exception to another one. Call this in the main thread.
    """
    codes: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        codes.append(128 + number)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in SIGNALS}
    caught = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in caught:
        signal.signal(number, stop)
    try:
        yield codes
    finally:
        for number, handler in caught.items():
            signal.signal(number, handler)


def report_error(error: BaseException, command: str, *, as_json: bool) -> int:
    """Write an error to stderr, with `as_json` also as an object to stdout. Returns the exit code.

    An unexpected error is raised again.
    """
    if isinstance(error, KeyboardInterrupt):
        return Exit.INTERRUPTED
    exit_code, code, message = _described(error, command)
    sys.stderr.write(f"error: {message}\n")
    try:
        sys.stdout.flush()
        if as_json:
            write_json({"error": {"code": code, "message": message}})
    except OSError:
        # What Python cannot write now, it would try to write again at its end, and then end with another exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exit_code


def _described(error: BaseException, command: str) -> tuple[Exit, str, str]:
    """Return the exit code of an error, its code in JSON and its message. An unexpected error is raised again."""
    match error:
        case SeftError():
            return exit_of(error), error.code, str(error)
        case ModuleNotFoundError():
            message = f"`{command}` works on this machine and needs the package {error.name}. {EXTRA}"
            return Exit.USAGE, "package_missing", message
        case _ if is_host_memory_full(error) or is_device_memory_full(error):
            lines = str(error).splitlines() or ["there is too little for Python"]
            message = (
                f"`{command}` must fit the memory: {lines[0]}. Use fewer tokens per window or a smaller model, and to"
                " train --micro-batch 1 and --activation-checkpointing."
            )
            return Exit.FAILED, "out_of_memory", message
        case OSError(errno=int(number)) if not isinstance(error, BrokenPipeError):
            way_out = "Free some space, or use another" if number in DISK_FULL else "Use another"
            message = f"files must be readable and writable: {error}. {way_out} disk or folder."
            return Exit.FAILED, "file_failed", message
        case _:
            raise error


def exit_of(error: SeftError) -> Exit:
    """Return the exit code of a command that fails with the error: of invalid input, if nothing else is known."""
    match error:
        case SourceError(code="hub_unreachable"):
            return Exit.UNREACHABLE
        case RecordFileError():
            return Exit.USAGE
        case BitsDifferError() | EvaluateError() | PruneError() | TrainError() | VerifyError():
            return Exit.FAILED
        case _:
            return Exit.USAGE


def accept_all_text() -> None:
    """Let stdout escape the characters that its encoding does not have, as stderr does, instead of an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def write_json(data: dict[str, Any]) -> None:
    """Write one JSON object to stdout. All its characters are ASCII, so every encoding has them."""
    write_line(json.dumps(data, allow_nan=False))


def write_line(text: str) -> None:
    """Write a line to stdout now, so that an error is raised here and not when Python ends."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
