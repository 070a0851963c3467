"""The folder that a stack lives in: who may run it, and the ports and secrets that stay the same over restarts."""

import fcntl
import json
import os
import random
import secrets
import socket
import time
from collections.abc import Mapping
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


def free_port(taken: Mapping[str, int]) -> int:
    """A loopback port that nobody listens on and that is not among `taken`."""
    return next(port for port in random.sample(PORTS, len(PORTS)) if port not in taken.values() and is_free(port))


def is_free(port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def kept_ports(folder: Path, names: tuple[str, ...]) -> dict[str, int]:
    """The ports of last time, each replaced by a fresh one if somebody else has taken it."""
    path = folder / "ports.json"
    before: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
    ports: dict[str, int] = {}
    for name in names:
        kept = before.get(name)
        ports[name] = kept if kept and kept not in ports.values() and is_free(kept) else free_port(ports)
    path.write_text(json.dumps(ports))
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
