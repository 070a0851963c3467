"""How a command of the library ends: its exit code, and one line about an error.

After an error in the input the exit code is 2, and after an error of the disk it is 1. It is 130 after Ctrl-C and 143
after SIGTERM; unfinished files are removed before.
"""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from seft.errors import SeftError

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
EXTRA = "Run pip install '.[torch]' in the folder of the repository."


@contextmanager
def stoppable() -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM raise KeyboardInterrupt. The yielded list then has the exit code.

    The list is needed because some libraries convert the exception to another one. Call this in the main thread.
    """
    codes: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        codes.append(128 + number)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
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
    exit_code = BAD_INPUT
    match error:
        case KeyboardInterrupt():
            return INTERRUPTED
        case SeftError():
            code, message, exit_code = error.code, str(error), error.exit_code
        case ModuleNotFoundError():
            code = "package_missing"
            message = f"`{command}` works on this machine and needs the package {error.name}. {EXTRA}"
        case OSError(errno=int()) if not isinstance(error, BrokenPipeError):
            code, exit_code = "file_failed", FAILED
            message = f"files must be readable and writable: {error}. Free some space, or use another disk or folder."
        case _:
            raise error
    sys.stderr.write(f"error: {message}\n")
    if as_json:
        write_json({"error": {"code": code, "message": message}})
    return exit_code


def write_json(data: dict[str, Any]) -> None:
    """Write one JSON object to stdout."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n")
