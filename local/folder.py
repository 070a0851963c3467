"""The folder that a stack lives in: who may run it, and the ports and secrets that stay the same over restarts."""

import fcntl
import json
import os
import random
import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path

from local.processes import LocalError

LOOPBACK = "127.0.0.1"
PORTS = range(20_000, 32_000)
"""Below the kernel's ephemeral range, so that no outgoing connection sits on a port that we want back."""
DYING_SECONDS = 20.0


class FolderLock:
    """One supervisor per folder.

    Servers inherit the open file, so the lock is free only when the last of them has ended: whoever gets it may touch
    their data, however the supervisor before it died.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / "lock"
        self.descriptor = -1

    def acquire(self) -> None:
        """Take the lock; wait for the servers of a dead supervisor, refuse when a living one holds it."""
        deadline = time.monotonic() + DYING_SECONDS
        while not self._take():
            if holder := self.holder():
                raise LocalError(f"{self.folder} is in use by process {holder}. `make down` stops it.")
            if time.monotonic() > deadline:
                raise LocalError(f"Servers in {self.folder} outlive their dead supervisor; their data may be in use.")
            time.sleep(0.05)
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Close our own copy; servers that still run keep theirs."""
        os.close(self.descriptor)
        self.descriptor = -1

    def holder(self) -> int:
        """Process id of the supervisor that took the lock and lives, else 0."""
        pid = self.path.read_text() if self.path.exists() else ""
        with suppress(FileNotFoundError, PermissionError):  # gone, or a stranger that got the number
            if pid and any(map(self._is_lock, Path(f"/proc/{pid}/fd").iterdir())):
                return int(pid)
        return 0

    def free(self) -> bool:
        """Whether no process of a stack in this folder is left."""
        if free := self._take():
            self.release()
        return free

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
    """Holds a loopback port while it is open, though a server may listen there; None if somebody else has the port.

    Bound alone, so that a second reservation fails; then made shareable with a server, which binds its port so.
    `returning` also takes a port on which connections of a server before it are still dying.
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
    """Holds a port that nobody else has."""
    return next(filter(None, map(reserve, random.sample(PORTS, len(PORTS)))))


def port_of(reservation: socket.socket) -> int:
    """The number of a reserved port."""
    port: int = reservation.getsockname()[1]
    return port


def kept_ports(folder: Path, names: tuple[str, ...]) -> dict[str, socket.socket]:
    """Reservations of the ports of last time, each replaced by a fresh one if somebody else has taken it."""
    path = folder / "ports.json"
    before: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
    ports = {name: (name in before and reserve(before[name], returning=True)) or reserve_any() for name in names}
    path.write_text(json.dumps({name: port_of(reservation) for name, reservation in ports.items()}))
    return ports


def kept_secret(path: Path) -> str:
    """The secret in this file, made of 256 random bits on first use and readable by its owner alone."""
    if not path.exists():
        write_private(path, secrets.token_hex(32))
    return path.read_text()


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, all of it or nothing."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    with open(fresh, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)
    fresh.replace(path)
