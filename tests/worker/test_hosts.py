"""Workers on separate hosts (network namespaces), one of which is disconnected from the network."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from sqlalchemy import make_url

from core.settings import Settings
from core.states import Status
from local import processes
from local.processes import children_of
from tests.faults.proxy import Proxy
from tests.waiting import alive, wait_for
from tests.worker.conftest import Backend, add_measured_worker, variables
from tests.worker.test_workers import STAND_IN

ADDRESSES = IPv4Network("10.197.0.0/16")
"""Each process of pytest uses two blocks of four of them."""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def may_connect() -> bool:
    """Return whether this process may create a network namespace and a cable to it."""
    name = f"seft-{os.getpid()}"
    try:
        ip("netns", "add", name)
        try:
            ip("link", "add", name, "type", "veth", "peer", "name", "cable", "netns", name)
        finally:
            ip("netns", "delete", name)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return False
    return True


class Host:
    """A network namespace that reaches the servers through a veth pair and forwarders at this end of it."""

    def __init__(self, number: int, settings: Settings, log: Path, stack: ExitStack) -> None:
        self.name, self.cable, self.log = f"seft-{os.getpid()}-{number}", f"seft{os.getpid()}-{number}"[:15], log
        first = 4 * (2 * os.getpid() + number) % ADDRESSES.num_addresses
        here, self.address = str(ADDRESSES[first + 1]), str(ADDRESSES[first + 2])
        self.reconnect()  # a killed run may have left the route
        stack.callback(self.reconnect)
        ip("netns", "add", self.name)
        stack.callback(ip, "netns", "delete", self.name)
        ip("link", "add", self.cable, "type", "veth", "peer", "name", "cable", "netns", self.name)
        ip("address", "add", f"{here}/30", "dev", self.cable)
        ip("link", "set", self.cable, "up")
        for arguments in (("address", "add", f"{self.address}/30", "dev", "cable"), ("link", "set", "cable", "up")):
            ip("-netns", self.name, *arguments)
        database, broker = make_url(str(settings.database_url)), make_url(str(settings.broker_url))
        storage = make_url(settings.s3_endpoint)
        ports = {}
        for server in (database, broker, storage):
            assert server.port
            wire = Proxy(server.port, here)
            stack.callback(wire.close)
            ports[server] = wire.port
        forwarded = {server: server.set(host=here, port=port) for server, port in ports.items()}
        self.environment = {
            **os.environ,
            **variables(settings),
            "SEFT_DATABASE_URL": forwarded[database].render_as_string(hide_password=False),
            "SEFT_BROKER_URL": forwarded[broker].render_as_string(hide_password=False),
            "SEFT_S3_ENDPOINT": forwarded[storage].render_as_string(),
        }

    def start_worker(self, scenario: str, stack: ExitStack) -> int:
        worker = processes.spawn(
            [sys.executable, "-m", STAND_IN, scenario],
            log=self.log,
            parent_death_signal=signal.SIGKILL,
            prefix=("ip", "netns", "exec", self.name),
            environment=self.environment,
        )
        stack.callback(processes.kill, worker)
        return worker.pid

    def disconnect(self) -> None:
        """Drop all packets, so that the host gets neither answers nor errors."""
        ip("route", "add", "blackhole", self.address)

    def reconnect(self) -> None:
        """Undo `disconnect`. Idempotent."""
        ip("route", "flush", "type", "blackhole", "exact", self.address)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    if not may_connect():
        pytest.skip("network namespaces need root, its capabilities and iproute2")
    with ExitStack() as stack:
        yield stack


def test_a_disconnected_host_loses_its_job_and_works_again_when_reconnected(
    backend: Backend, tmp_path: Path, stack: ExitStack
) -> None:
    settings = backend.settings
    first, second = (Host(number, settings, tmp_path / "log", stack) for number in (1, 2))
    add_measured_worker(backend.sessions)
    job = backend.add_job(backend.add_dataset(["one " * 1024, "two"]))
    worker = first.start_worker("hang_with_child", stack)
    wait_for(lambda: backend.job(job).progress == 0.5)
    children = children_of(worker)
    first.disconnect()
    other = second.start_worker("succeed_slowly", stack)
    wait_for(lambda: Status(backend.job(job).status).final)
    assert (backend.job(job).status, backend.job(job).attempt) == (Status.SUCCEEDED, 2)
    wait_for(lambda: not any(map(alive, children)))
    before = backend.job(job).updated_at
    os.kill(other, signal.SIGKILL)
    first.reconnect()
    further = backend.add_job(backend.add_dataset(["three " * 1024, "four"]))
    wait_for(lambda: backend.job(further).progress == 0.5)
    assert len({name for _, name in backend.claims()}) == 2
    assert backend.job(job).updated_at == before
