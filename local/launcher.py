"""Replace this process by a command that gets a signal when its parent ends.

`python -I -S launcher.py PARENT SIGNAL COMMAND...`: the kernel sends SIGNAL when PARENT ends in any way, `kill -9`
included. It is a program of its own because the order matters: changing the user clears the setting, so it is made
last, right before the command starts. If the parent has ended before that, the launcher exits. Linux only. Imports
only the standard library.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, signal: int, command: list[str]) -> None:
    """Run the command in this process. Exits at once if the parent has ended already. Never returns."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit(f"launcher: the parent, process {parent}, is gone")
    os.execvp(command[0], command)  # noqa: S606 (the purpose of this program)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
