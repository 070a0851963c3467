"""The folder of a stack. It has a lock, and keeps the stack's ports and secrets for the next start."""

import fcntl
import json
import os
import random
import secrets
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

from local.processes import LocalError

LOOPBACK = "127.0.0.1"
NO_PROXY = ("NO_PROXY", "no_proxy")
"""Variables that name the hosts to which programs connect without a proxy."""
STEP_FILE = "step"
"""File with the name of the step that a stack takes at present while it starts or stops."""
PORTS = range(20_000, 32_000)
"""Range of ports to choose from. The kernel never uses them for outgoing connections, because its range is higher."""
SHUTDOWN_SECONDS = 20.0
"""Seconds in which servers must end after their supervisor was killed. After that they are killed too."""


def bypass_proxies() -> None:
    """Make this process and its children connect to loopback directly, even if this machine uses a proxy."""
    for name in NO_PROXY:
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), LOOPBACK]))


class FolderLock:
    """A file lock that allows only one supervisor per folder.

    The servers inherit the open file. So the lock becomes free only when the last server has ended, even if the
    supervisor was killed. A process that gets the lock can therefore use the servers' data safely.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / "lock"
        self.descriptor = -1

    def acquire(self) -> None:
        """Take the lock. Raises LocalError if a live supervisor has it.

        If the supervisor was killed and its servers still run, wait until they have ended. Servers that have not
        ended after `SHUTDOWN_SECONDS` are killed. Data that they have confirmed as stored are not lost.
        """
        deadline = time.monotonic() + SHUTDOWN_SECONDS
        while not self._take():
            if holder := self.holder():
                raise LocalError(f"{self.folder} is in use by process {holder}. `make down` stops it.")
            if time.monotonic() > deadline:
                self._kill_users()
            time.sleep(0.05)
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Close the lock file in this process. Servers that still run keep the lock."""
        os.close(self.descriptor)
        self.descriptor = -1

    def holder(self) -> int:
        """Return the process id of the live supervisor that has the lock, or 0 if there is none."""
        pid = self.path.read_text() if self.path.exists() else ""
        return int(pid) if pid and self._is_user(Path("/proc") / pid) else 0

    def announce(self, step: str) -> None:
        """Write what the stack does at present, such as `waiting for postgres`, for the processes that wait for it."""
        with suppress(OSError):  # a full disk must not prevent a stop
            write_private(self.folder / STEP_FILE, step)

    def free(self) -> bool:
        """Return True if no process of a stack in this folder is running."""
        if free := self._take():
            self.release()
        return free

    def _kill_users(self) -> None:
        """Kill all processes that have the lock file open."""
        for process in Path("/proc").glob("[0-9]*"):
            if self._is_user(process):
                with suppress(ProcessLookupError):
                    os.kill(int(process.name), signal.SIGKILL)

    def _is_user(self, process: Path) -> bool:
        """Return True if a process, given by its folder in /proc, has the lock file open."""
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):  # ended, or of another user
            return any(map(self._is_lock, (process / "fd").iterdir()))
        return False

    def _is_lock(self, file: Path) -> bool:
        with suppress(FileNotFoundError):  # closed since it was listed
            return file.samefile(self.path)
        return False

    def _take(self) -> bool:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self.descriptor = descriptor
        return True


def reserve(port: int, *, returning: bool = False) -> socket.socket | None:
    """Reserve a port on loopback with a bound socket. Returns None if another process uses the port.

    The socket is bound without SO_REUSEADDR, so a second reservation of the port fails. The option is set afterwards,
    so that a server can listen on the port. With `returning`, a port that still has connections of an earlier server
    in the state TIME_WAIT is accepted too.
    """
    reservation = socket.socket()
    for shareable in (False, True)[: 1 + returning]:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, shareable)
        with suppress(OSError):
            reservation.bind((LOOPBACK, port))
            reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)
            return reservation
    reservation.close()
    return None


def reserve_any() -> socket.socket:
    """Reserve any free port."""
    return next(filter(None, map(reserve, random.sample(PORTS, len(PORTS)))))


def port_of(reservation: socket.socket) -> int:
    """Return the port number of a reservation."""
    port: int = reservation.getsockname()[1]
    return port


def reserve_ports(folder: Path, names: tuple[str, ...]) -> dict[str, socket.socket]:
    """Reserve the same ports as at the last start. A port that another process uses now is replaced by a free one."""
    path = folder / "ports.json"
    before: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
    ports = {name: (name in before and reserve(before[name], returning=True)) or reserve_any() for name in names}
    path.write_text(json.dumps({name: port_of(reservation) for name, reservation in ports.items()}))
    return ports


def load_secret(path: Path) -> str:
    """Return the secret in this file.

    If the file is missing, create it with 256 random bits that only its owner can read.
    """
    if not path.exists():
        write_private(path, secrets.token_hex(32))
    return path.read_text()


def write_private(path: Path, text: str) -> None:
    """Write a file atomically. Only its owner can read it."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    with open(temporary, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)
    temporary.replace(path)
