"""Workers on machines of their own: network namespaces, one of which is cut off so that no packet comes through."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import make_url

from core.settings import Settings
from core.states import Status
from local import processes
from tests.faults.proxy import Proxy
from tests.worker.conftest import House, alive, children_of, variables, wait_for
from tests.worker.test_workers import STAND_IN

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None,
    reason="network namespaces need root and iproute2",
)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


class Host:
    """A machine that reaches the servers by a cable of its own, at this end of which forwarders wait."""

    def __init__(self, number: int, settings: Settings, log: Path, stack: ExitStack) -> None:
        self.name, self.cable, self.log = f"seft-{os.getpid()}-{number}", f"seft{os.getpid()}-{number}"[:15], log
        here, self.address = f"10.197.{number}.1", f"10.197.{number}.2"
        self.mend()  # what a run that was killed has left
        stack.callback(self.mend)
        ip("netns", "add", self.name)
        stack.callback(ip, "netns", "delete", self.name)
        ip("link", "add", self.cable, "type", "veth", "peer", "name", "cable", "netns", self.name)
        ip("address", "add", f"{here}/30", "dev", self.cable)
        ip("link", "set", self.cable, "up")
        for words in (("address", "add", f"{self.address}/30", "dev", "cable"), ("link", "set", "cable", "up")):
            ip("-netns", self.name, *words)
        database, broker = make_url(str(settings.database_url)), make_url(str(settings.broker_url))
        storage = make_url(settings.s3_endpoint)
        ports = {}
        for server in (database, broker, storage):
            assert server.port
            wire = Proxy(server.port, here)
            stack.callback(wire.close)
            ports[server] = wire.port
        moved = {server: server.set(host=here, port=port) for server, port in ports.items()}
        self.environment = {
            **os.environ,
            **variables(settings),
            "SEFT_DATABASE_URL": moved[database].render_as_string(hide_password=False),
            "SEFT_BROKER_URL": moved[broker].render_as_string(hide_password=False),
            "SEFT_S3_ENDPOINT": moved[storage].render_as_string(),
        }

    def start_worker(self, scenario: str, stack: ExitStack) -> int:
        worker = processes.spawn(
            [sys.executable, "-m", STAND_IN, scenario],
            log=self.log,
            orphaned=signal.SIGKILL,
            prefix=("ip", "netns", "exec", self.name),
            environment=self.environment,
        )
        stack.callback(processes.kill, worker)
        return worker.pid

    def cut(self) -> None:
        """Nothing is heard from the servers any more, not even that they are not there."""
        ip("route", "add", "blackhole", self.address)

    def mend(self) -> None:
        """Nothing happens where it is not cut off."""
        ip("route", "flush", "type", "blackhole", "exact", self.address)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@needs_root
def test_a_host_that_is_cut_off_loses_its_job_to_another_and_comes_back(
    house: House, tmp_path: Path, stack: ExitStack
) -> None:
    settings = house.settings
    first, second = (Host(number, settings, tmp_path / "log", stack) for number in (1, 2))
    job = house.add_job(house.add_dataset(["one", "two"]))
    worker = first.start_worker("hang_with_child", stack)
    wait_for(lambda: house.job(job).progress == 0.5, seconds=120)
    family = children_of(worker)
    first.cut()
    other = second.start_worker("succeed_slowly", stack)
    wait_for(lambda: Status(house.job(job).status).final, seconds=120)
    assert (house.job(job).status, house.job(job).attempt) == (Status.SUCCEEDED, 2)
    wait_for(lambda: not any(map(alive, family)), seconds=120)
    before = house.job(job).updated_at
    os.kill(other, signal.SIGKILL)
    first.mend()
    further = house.add_job(house.add_dataset(["three", "four"]))
    wait_for(lambda: house.job(further).progress == 0.5, seconds=120)
    assert len({name for _, name in house.claims()}) == 2
    assert house.job(job).updated_at == before
