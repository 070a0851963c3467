"""One long-running program of the stack: started, watched, stopped. What it is, its subclasses say."""

import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from typing import ClassVar

from local import processes
from local.folder import FolderLock, kept_ports, port_of
from local.processes import LocalError

START_SECONDS = 60.0
SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds that lie at least between two launches of a program that keeps ending."""


class Program:
    """A process with a folder, a log, ports, and a way to ask whether it answers."""

    name: ClassVar[str]
    port_names: ClassVar[tuple[str, ...]] = ("main",)
    farewell: ClassVar[signal.Signals] = signal.SIGTERM
    """Ends it in good order."""
    orphaned: ClassVar[signal.Signals] = signal.SIGTERM
    """Ends it when its owner is gone: soon, and without harm to its data."""
    patience: ClassVar[float] = 20.0
    """Seconds that it may take to end in good order."""
    not_ready: ClassVar[tuple[type[Exception], ...]]
    """What `ping` raises while it cannot answer yet."""

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
        """Where it serves, known once it was launched."""
        return self.ports["main"]

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Launch it and wait until it answers."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start the process without waiting for it. Its ports stay as they are once they were chosen."""
        if not self.ports:
            reserved = kept_ports(self.folder, self.port_names)
            self.ports = {name: port_of(reservation) for name, reservation in reserved.items()}
            self.reservations = list(reserved.values())
        self.tidy()
        self.process = self.spawn(self.command())
        self.launched = time.monotonic()

    def wait(self) -> None:
        """Until it answers; LocalError with the log's end when it does not."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return self.ping()
            except self.not_ready as error:
                if not self.running or time.monotonic() > deadline:
                    last = processes.tail(self.log)
                    raise LocalError(f"{self.name} did not start; {self.log} ends:\n{last}") from error
            time.sleep(0.05)

    def tend(self) -> bool:
        """Start it again when it has ended by itself, ever later when it keeps doing so; True when that was done."""
        lived = time.monotonic() - self.launched
        if self.running or lived < self.pause:
            return False
        self.pause = SHORTEST_PAUSE if lived > LONGEST_PAUSE else min(2 * self.pause, LONGEST_PAUSE)
        self.launch()
        return True

    def stop(self) -> None:
        """End it in good order; nothing happens when it is not running."""
        if self.process is not None:
            processes.stop(self.process, self.farewell, self.patience)
        self.process = None
        while self.reservations:
            self.reservations.pop().close()
        self.tidy()

    def kill(self) -> None:
        """End it as a power cut would; what it confirmed is still there after the next start."""
        if self.process is not None:
            processes.kill(self.process)
        self.process = None
        self.tidy()

    def spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Run a command of this program on a leash, its output in the log, the folder's lock kept open."""
        return processes.spawn(
            command,
            log=self.log,
            orphaned=self.orphaned,
            prefix=self.prefix(),
            environment=self.environment(),
            hold=(self.lock.descriptor,),
        )

    def prefix(self) -> tuple[str, ...]:
        """What to put before the command to change the user."""
        return ()

    def environment(self) -> Mapping[str, str] | None:
        """Its environment variables, None for those of this process."""
        return None

    def command(self) -> list[str]:
        """The command line, after whatever it needs on disk is there."""
        raise NotImplementedError

    def ping(self) -> None:
        """One real exchange in its own protocol, raising one of `not_ready` when it cannot answer."""
        raise NotImplementedError

    def tidy(self) -> None:
        """Remove what a process that is gone has left outside its folder."""
