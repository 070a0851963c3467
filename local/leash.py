"""Put a process on a leash, then become it: `python -I -S leash.py OWNER SIGNAL COMMAND...`.

The kernel sends SIGNAL when OWNER, the parent process, ends for whatever reason, `kill -9` included. This is a program
of its own because the order matters: a change of user clears the wish, so it is made last, right before the command
takes over; and an owner that died before the wish was made is noticed here. Linux only. Imports nothing of ours.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main(owner: int, signal: int, command: list[str]) -> None:
    """Never returns: ends as the command, or at once when the owner is gone already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) was refused")
    if os.getppid() != owner:
        sys.exit(f"leash: the owner, process {owner}, is gone")
    os.execvp(command[0], command)  # noqa: S606 (the point of this program)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
