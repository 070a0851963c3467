"""Base class of the long-running programs of the stack. It starts, restarts and stops a program."""

import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from typing import ClassVar

from local import processes
from local.folder import FolderLock, port_of, reserve_ports
from local.processes import LocalError

START_SECONDS = 600.0
"""Maximum seconds until a program that does not end is ready. On a busy machine a start takes minutes."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Minimum and maximum seconds between two starts of a program. The pause doubles each time the program ends."""


class Program:
    """A program with its process, folder, log file, ports and readiness check."""

    name: ClassVar[str]
    port_names: ClassVar[tuple[str, ...]] = ("main",)
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    """Signal that tells the program to shut down."""
    parent_death_signal: ClassVar[signal.Signals] = signal.SIGTERM
    """Signal that the program gets when its parent ends. On this signal it must end soon and leave its data intact."""
    stop_seconds: ClassVar[float] = 20.0
    """Seconds that a shutdown can take. After that the process is killed."""
    not_ready: ClassVar[tuple[type[Exception], ...]]
    """Types of exceptions that `ping` raises while the program is not ready."""

    def __init__(self, lock: FolderLock) -> None:
        self.lock = lock
        self.folder = lock.folder / self.name
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.log = self.folder / "log"
        self.ports: dict[str, int] = {}
        self.reservations: list[socket.socket] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.launched = 0.0
        self.pause = SHORTEST_PAUSE

    @property
    def port(self) -> int:
        """The main port of the program. Available after the first launch."""
        return self.ports["main"]

    @property
    def running(self) -> bool:
        """Whether the program's process is running."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start the program and wait until it is ready."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start the process without waiting until it is ready. It gets the same ports as at its first launch."""
        if not self.ports:
            reserved = reserve_ports(self.folder, self.port_names)
            self.ports = {name: port_of(reservation) for name, reservation in reserved.items()}
            self.reservations = list(reserved.values())
        self.clean_up()
        self.process = self.spawn(self.command())
        self.launched = time.monotonic()

    def wait(self) -> None:
        """Wait until the program is ready.

        Raises LocalError, with the last lines of the log, if the program ends or does not become ready in time.
        """
        self.lock.announce(f"waiting for {self.name}")
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return self.ping()
            except self.not_ready as error:
                if not self.running or time.monotonic() > deadline:
                    last = processes.tail(self.log)
                    raise LocalError(f"{self.name} did not start. The end of {self.log}:\n{last}") from error
            time.sleep(0.05)

    def restart_ended(self) -> bool:
        """Restart the program if it has ended by itself. Returns True if it was restarted.

        The pauses between restarts grow if the program keeps ending. Raises the error of `launch` if it cannot be
        started. The pause also applies then.
        """
        uptime = time.monotonic() - self.launched
        if self.running or uptime < self.pause:
            return False
        self.pause = SHORTEST_PAUSE if uptime > LONGEST_PAUSE else min(2 * self.pause, LONGEST_PAUSE)
        self.launched = time.monotonic()
        self.launch()
        return True

    def stop(self) -> None:
        """Shut the program down. Idempotent."""
        if self.process is not None:
            self.lock.announce(f"stopping {self.name}")
            processes.stop(self.process, self.stop_signal, self.stop_seconds)
        self.process = None
        while self.reservations:
            self.reservations.pop().close()
        self.clean_up()

    def kill(self) -> None:
        """Kill the program. Data that it has confirmed as stored are not lost."""
        if self.process is not None:
            processes.kill(self.process)
        self.process = None
        self.clean_up()

    def spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a command as this program's process.

        Its output goes to the program's log, it ends when this process ends, and it keeps the lock of the folder
        open.
        """
        return processes.spawn(
            command,
            log=self.log,
            parent_death_signal=self.parent_death_signal,
            prefix=self.prefix(),
            environment=self.environment(),
            inherited=(self.lock.descriptor,),
        )

    def prefix(self) -> tuple[str, ...]:
        """Return the command that changes the user, to put before the program's command. Empty to keep the user."""
        return ()

    def environment(self) -> Mapping[str, str] | None:
        """Return the environment variables of the program, or None to inherit those of this process."""
        return None

    def command(self) -> list[str]:
        """Create the files that the program needs, and return its command line."""
        raise NotImplementedError

    def ping(self) -> None:
        """Send one request to the program in its own protocol.

        Raises one of `not_ready` if the program does not answer.
        """
        raise NotImplementedError

    def clean_up(self) -> None:
        """Delete files outside the program's folder that its ended process has left."""
