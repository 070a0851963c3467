"""What a worker finds that it has."""

import os
import threading
from pathlib import Path

import pytest

from core.capability import CPU
from core.infra import queue
from core.settings import Settings
from core.tables import Worker
from tests.worker.conftest import House
from worker import device
from worker.device import Device
from worker.sweep import Sweep


def test_torch_is_asked_in_a_process_of_its_own_and_finds_what_is_there() -> None:
    found = device.asked("auto")
    assert found == device.processor() or found.kind == "cuda"


def test_a_container_has_the_memory_that_it_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = device.processor()
    assert whole.memory > 1 << 28
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(device, "CGROUP_LIMIT", limit)
    for written, memory in (("1000000\n", 1_000_000), ("max\n", None), (f"{1 << 62}\n", None)):
        limit.write_text(written)
        found = device.processor().memory
        assert found == memory if memory else found >= whole.memory


def test_room_is_what_the_disk_has_now_and_none_where_there_can_be_no_folder(settings: Settings) -> None:
    here = settings.model_copy(update={"device": CPU})
    has = device.ability(here)
    assert (has.device, has.disk > 0) == (CPU, True)
    (settings.scratch / "file").touch()
    assert device.ability(here.model_copy(update={"scratch": settings.scratch / "file" / "x"})).disk == 0


@pytest.fixture
def card(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the figure that `nvidia-smi` reads out of the settings' device."""
    told, tool = tmp_path / "used", tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\n[ "$1" = --id=GPU-of-ours ] && exec cat {told}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(device, "find", lambda name: Device("cuda", "H100", 80 << 30, "of-ours"))
    told.write_text("500\n")
    return told


def test_memory_that_a_process_leaves_behind_is_waited_for_and_then_told(
    card: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = device.used(settings)
    assert before == 500 << 20
    assert device.held(settings, before) == 0
    card.write_text("9000\n")
    freed = threading.Timer(1.0, lambda: card.write_text("600\n"))
    freed.start()
    assert device.held(settings, before) == 0
    assert freed.finished.is_set()
    card.write_text("9000\n")
    monkeypatch.setattr(device, "FREEING_SECONDS", 0.1)
    assert device.held(settings, before) == 8500 << 20


def test_a_sweep_tells_how_warm_the_device_is_where_nvml_knows(card: Path, house: House) -> None:
    sweep = Sweep("gpu-1", house.settings, queue.make_app(house.settings), house.sessions, house.storage)
    for told, temperature in (("61\n", 61), ("63\n", 63), ("[N/A]\n", None)):
        card.write_text(told)
        sweep.send_heartbeat()
        with house.sessions.begin() as session:
            assert session.get_one(Worker, "gpu-1").temperature == temperature


def test_a_device_that_nvml_knows_nothing_of_is_not_waited_for(card: Path, settings: Settings) -> None:
    card.unlink()
    assert device.temperature(settings) is None
    assert device.used(settings) is None
    assert device.held(settings, None) == device.held(settings, 0) == 0
