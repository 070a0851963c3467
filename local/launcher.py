"""Replace this process by a command, and have the kernel send the command a signal when its parent process ends.

Usage: `python -I -S launcher.py PARENT SIGNAL COMMAND...`. The kernel sends SIGNAL whenever the process PARENT ends,
even after `kill -9`. The launcher is a separate program, because the order of steps matters: a change of the user
clears the setting of the signal, so the signal is set last, just before the command starts. If PARENT has ended
before that, the launcher exits. It works on Linux only and imports only the standard library.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, signal: int, command: list[str]) -> None:
    """Replace this process by the command. Exit at once if the parent has already ended. Never returns."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit(f"launcher: the parent, process {parent}, is gone")
    os.execvp(command[0], command)  # noqa: S606 (the purpose of this program)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
