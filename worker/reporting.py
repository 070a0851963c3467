"""Send messages from a training process to its worker. Errors of the process are sent as messages, too."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from core.models.hub_cache import CacheFullError
from core.states import OUT_OF_MEMORY
from seft.errors import (
    DISK_FULL,
    Cancelled,
    ConfigError,
    DataError,
    EvaluateError,
    PruneError,
    RecordError,
    SeftError,
    SourceError,
    TrainError,
)
from seft.models.hub_files import UNREACHABLE
from worker.protocol import Failed, Message, NoDiskSpace, Stopped, encode

USER_ERRORS = (ConfigError, DataError, EvaluateError, PruneError, RecordError, SourceError, TrainError)
"""Types of errors that a retry would raise again. The one exception is an unreachable model hub."""


def sender(pipe: int) -> Callable[[Message], None]:
    """Return a function that writes a message to the pipe."""

    def send(message: Message) -> None:
        line = encode(message)
        while line:
            line = line[os.write(pipe, line) :]

    return send


@contextmanager
def errors_sent(send: Callable[[Message], None]) -> Iterator[None]:
    """Send an expected error of the `with` block as a message that says how the job ended.

    Unexpected errors pass. Python prints them to the output, or the launcher of several processes prints the first one.
    The worker reports the end of the output.
    """
    try:
        yield
    except Cancelled:
        send(Stopped())
    except SeftError as error:
        user_error = isinstance(error, USER_ERRORS) and error.code != UNREACHABLE
        send(Failed(user_error=user_error, code=error.code, message=str(error)))
    except MemoryError as error:
        message = f"The machine ran out of memory. {error}"
        send(Failed(user_error=True, code=OUT_OF_MEMORY, message=message, of_host=True))
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        # The cache may be on another disk than the job's folder, so it says nothing about the space for the folder.
        needed = 0 if isinstance(error, CacheFullError) else getattr(error, "needed", None)
        send(NoDiskSpace(message=str(error), needed=needed))
