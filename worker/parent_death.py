"""Ends the training process, and every process that it started, when its worker ends. Linux only.

The kernel kills the process when its worker dies. It does not kill the process's own children. So a small process in
the same group watches standard input, a pipe that only the worker keeps open, and kills the group when it closes.
"""

import ctypes
import faulthandler
import os
import select
import signal
import sys

PR_SET_PDEATHSIG = 1


def exit_with_parent(parent: int) -> None:
    """Bind this process to its parent, the worker. On SIGUSR2 it will write the stacks of its threads.

    Call it first, before there are threads. Exits at once if the parent is gone already.
    """
    faulthandler.register(signal.SIGUSR2)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit(f"the parent, process {parent}, is gone")
    if os.fork() == 0:
        _watch(sys.stdin.fileno())


def _watch(pipe: int) -> None:
    """Kill the group when the pipe closes. Closes all other files, since it must not keep the process's pipes open."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    closed = select.poll()
    closed.register(pipe, 0)
    closed.poll()
    os.killpg(0, signal.SIGKILL)
