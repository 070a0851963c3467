"""How the training process hangs on its worker: it ends with it, and all that it started; it tells where it is. Linux.

The kernel kills the process when its worker dies. It would not kill what the process has started in turn, so a tiny
process in the same group watches the lifeline, a pipe that only the worker holds open, and kills the group at its end.
"""

import ctypes
import faulthandler
import os
import select
import signal
import sys

PR_SET_PDEATHSIG = 1


def tether(owner: int) -> None:
    """Call it first, before there are threads. Exits at once when the owner, the parent process, is gone already."""
    faulthandler.register(signal.SIGUSR2)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) was refused")
    if os.getppid() != owner:
        sys.exit(f"the owner, process {owner}, is gone")
    if os.fork() == 0:
        _watch(sys.stdin.fileno())


def _watch(lifeline: int) -> None:
    """Never returns. Holds nothing open, so that the ends of the process's pipes are seen."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    hung_up = select.poll()
    hung_up.register(lifeline, 0)
    hung_up.poll()
    os.killpg(0, signal.SIGKILL)
