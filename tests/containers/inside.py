"""A worker whose training processes try what is forbidden, and fail their job with a message that says what happened.

`tests.containers.boundary` runs it in a container of the worker, as `python inside.py worker`. This is a real worker.
Its training processes run `child`, which is `worker.child` with one change: it executes `training` in the sandbox, in
place of `worker.training`.
"""

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from worker.protocol import Failed
from worker.reporting import sender

CODE = "probed"
"""The error code of the job."""
SERVERS = ("storage", 8333), ("postgres", 5432), ("valkey", 6379), ("api", 8000)
ELSEWHERE = ("1.1.1.1", 53)


def worker() -> None:
    """Run the worker."""
    from worker import service

    service.main([sys.executable, __file__, "child"])


def child(folder: str, pipe: str, parent: str, store: str) -> None:
    """Check that what `training` tries is possible without the sandbox. Then execute it in the sandbox."""
    from worker import child as original

    addresses = []
    for server in SERVERS:
        with socket.create_connection(server, timeout=5) as connection:
            addresses.append(connection.getpeername())
    # The first process of the container has the variables of the service, and the user of this process.
    assert b"SEFT_S3_SECRET_KEY=" in Path("/proc/1/environ").read_bytes()
    command = [sys.executable, __file__, "training", pipe, json.dumps(addresses)]
    execve = os.execve
    with patch("os.execve", lambda path, _, variables: execve(path, command, variables)):
        original.main(Path(folder), int(pipe), int(parent), int(store))


def training(pipe: str, addresses: str) -> None:
    """Send the names of the environment variables, and for each attempt the name of its error, or `done`."""
    outcomes: dict[str, str] = {}

    def attempt(action: Callable[..., object], *arguments: object) -> None:
        name = " ".join([action.__name__, *map(str, arguments)])
        try:
            action(*arguments)
            outcomes[name] = "done"
        except OSError as error:
            outcomes[name] = type(error).__name__

    for address in (*json.loads(addresses), ELSEWHERE):
        attempt(connect, *address)
    attempt(send_datagram, *ELSEWHERE)
    attempt(socket.getaddrinfo, "storage", 8333)
    for process in Path("/proc").glob("[0-9]*"):
        if process.name != str(os.getpid()):
            for name in ("environ", "mem", "maps"):
                attempt(read, process / name)
            attempt(os.readlink, process / "fd" / "0")
    for folder in ("/", "/run", "/var/lib/seft/scratch", "/var/lib/seft/hub"):
        attempt(entries, folder)
    attempt(read, "/etc/shadow")
    attempt(read, "/etc/resolv.conf")
    message = json.dumps({"outcomes": outcomes, "variables": sorted(os.environ)})
    sender(int(pipe))(Failed(user_error=True, code=CODE, message=message))


def connect(host: str, port: int) -> None:
    """Connect over TCP."""
    socket.create_connection((host, port), timeout=5).close()


def send_datagram(host: str, port: int) -> None:
    """Send an empty datagram over UDP."""
    socket.socket(type=socket.SOCK_DGRAM).sendto(b"", (host, port))


def read(path: Path | str) -> None:
    """Read the first byte of a file."""
    with Path(path).open("rb") as file:
        file.read(1)


def entries(path: Path | str) -> None:
    """List a folder."""
    list(Path(path).iterdir())


if __name__ == "__main__":
    programs: dict[str, Callable[..., None]] = {"worker": worker, "child": child, "training": training}
    programs[sys.argv[1]](*sys.argv[2:])
