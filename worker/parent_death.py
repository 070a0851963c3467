"""End the training process, and every process that it started, when its worker ends. Linux only.

The kernel kills the training process when its worker dies, but not the children of the training process. So a small
extra process in the same process group watches standard input. This is a pipe that only the worker keeps open. When
the pipe closes, the extra process kills the group. The extra process is outside of the sandbox. Since Linux 6.12, the
training process therefore cannot send it a signal (`core.infra.sandbox`).
"""

import faulthandler
import os
import select
import signal
import sys

from core.infra import sandbox
from seft.parent_process import end_with_parent


def exit_with_parent(parent: int) -> None:
    """Make this process end when `parent`, its worker, ends. Also make it write its threads' stacks on SIGUSR2.

    Call this before any thread starts. If the parent has already ended, this process exits at once.
    """
    faulthandler.register(signal.SIGUSR2)
    end_with_parent(parent)
    if os.fork() == 0:
        _watch(sys.stdin.fileno())


def _watch(pipe: int) -> None:
    """Wait until the pipe closes, then kill the process group.

    All other descriptors are closed first, because copies would keep the pipes of the training process open.
    """
    sandbox.forbid_memory_access()  # it was forked when the environment still had the token of the hub
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    closed = select.poll()
    closed.register(pipe, 0)
    closed.poll()
    os.killpg(0, signal.SIGKILL)
