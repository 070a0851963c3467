"""Base class of a long-running program of the stack: start it, restart it if it ends, stop it."""

import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from typing import ClassVar

from local import processes
from local.folder import FolderLock, port_of, reserve_ports
from local.processes import LocalError

START_SECONDS = 60.0
SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Minimum seconds between two launches of a program; doubled, up to the maximum, while it keeps ending."""


class Program:
    """A process with a folder, a log, ports and a readiness check."""

    name: ClassVar[str]
    port_names: ClassVar[tuple[str, ...]] = ("main",)
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    """Signal on which it shuts down."""
    parent_death_signal: ClassVar[signal.Signals] = signal.SIGTERM
    """Signal that it gets when its parent ends. It must end soon, without damage to its data."""
    stop_seconds: ClassVar[float] = 20.0
    """Seconds that a shutdown may take before the process is killed."""
    not_ready: ClassVar[tuple[type[Exception], ...]]
    """Exceptions that `ping` raises while the program is not ready."""

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
        """The main port. Set by the first launch."""
        return self.ports["main"]

    @property
    def running(self) -> bool:
        """Whether its process is running."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Launch it and wait until it is ready."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start the process without waiting. It keeps the ports of its first launch."""
        if not self.ports:
            reserved = reserve_ports(self.folder, self.port_names)
            self.ports = {name: port_of(reservation) for name, reservation in reserved.items()}
            self.reservations = list(reserved.values())
        self.clean_up()
        self.process = self.spawn(self.command())
        self.launched = time.monotonic()

    def wait(self) -> None:
        """Wait until it is ready. Raises LocalError with the end of its log if it ends or does not get ready."""
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
        """Restart it if it has ended by itself, with growing pauses. Returns True if it was restarted."""
        uptime = time.monotonic() - self.launched
        if self.running or uptime < self.pause:
            return False
        self.pause = SHORTEST_PAUSE if uptime > LONGEST_PAUSE else min(2 * self.pause, LONGEST_PAUSE)
        self.launch()
        return True

    def stop(self) -> None:
        """Shut it down. Idempotent."""
        if self.process is not None:
            processes.stop(self.process, self.stop_signal, self.stop_seconds)
        self.process = None
        while self.reservations:
            self.reservations.pop().close()
        self.clean_up()

    def kill(self) -> None:
        """Kill it. Data that it has confirmed survive."""
        if self.process is not None:
            processes.kill(self.process)
        self.process = None
        self.clean_up()

    def spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a command that logs to this program's log, ends with this process and keeps the folder's lock open."""
        return processes.spawn(
            command,
            log=self.log,
            parent_death_signal=self.parent_death_signal,
            prefix=self.prefix(),
            environment=self.environment(),
            inherited=(self.lock.descriptor,),
        )

    def prefix(self) -> tuple[str, ...]:
        """Return the command prefix that changes the user; empty for none."""
        return ()

    def environment(self) -> Mapping[str, str] | None:
        """Return its environment variables; None for those of this process."""
        return None

    def command(self) -> list[str]:
        """Create the files that the program needs and return its command line."""
        raise NotImplementedError

    def ping(self) -> None:
        """Send one request in the program's own protocol. Raises one of `not_ready` if it fails."""
        raise NotImplementedError

    def clean_up(self) -> None:
        """Delete what an ended process has left outside its folder."""
