"""The device of a worker: what it is, its memory and its temperature."""

import os
import platform
import subprocess
import threading
from pathlib import Path

import pytest

from core.capability import CPU
from core.infra import devices, queue
from core.settings import Settings
from core.tables import Worker
from seft import processor
from tests.worker.conftest import Backend
from worker import device
from worker.device import Device
from worker.sweep import Sweep


def test_torch_looks_up_the_device_in_a_process_of_its_own() -> None:
    result = device.ask_torch("auto", 1)
    assert result == device.cpu() or result.kind == "cuda"


def test_memory_is_at_most_the_limit_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = device.cpu()
    assert whole.memory > 1 << 28
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(device, "CGROUP_LIMIT", limit)
    for content, memory in (("1000000\n", 1_000_000), ("max\n", None), (f"{1 << 62}\n", None)):
        limit.write_text(content)
        result = device.cpu().memory
        assert result == memory if memory else result >= whole.memory


@pytest.mark.parametrize("flags", ["avx2 avx512_bf16", "avx2"])
def test_a_processor_has_the_name_of_its_model_and_says_whether_it_has_instructions_for_bfloat16(
    flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "CPU_INFO", file)
    file.write_text(f"processor : 0\nmodel name : A 4 GHz: fast\nflags : {flags}\n\n")
    assert device.cpu().name.startswith("A 4 GHz: fast, ")
    assert device.cpu().bfloat16 is ("avx512_bf16" in flags)
    file.write_text("processor : 0\n")
    assert device.cpu().name.startswith(platform.machine())


def test_disk_is_the_free_space_and_0_if_the_folder_cannot_be_created(settings: Settings) -> None:
    local = settings.model_copy(update={"device": CPU})
    capability = device.capability(local)
    assert (capability.device, capability.disk > 0) == (CPU, True)
    assert capability.bfloat16 is processor.has_bfloat16()
    (settings.scratch / "file").touch()
    assert device.capability(local.model_copy(update={"scratch": settings.scratch / "file" / "x"})).disk == 0


@pytest.fixture
def card(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the value that a fake `nvidia-smi` prints for the device."""
    value, tool = tmp_path / "used", tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\ncase $1 in --id=GPU-of-ours) exec cat {value};; *) echo 500;; esac\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    card = Device("cuda", "H100", 80 << 30, bfloat16=True, uuids=["other", "of-ours"])
    monkeypatch.setattr(device, "find", lambda name, count: card)
    value.write_text("500\n")
    return value


def test_unfreed_waits_for_the_memory_of_an_ended_process(
    card: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = device.used_memory(settings)
    assert before == [500 << 20, 500 << 20]
    assert device.unfreed_memory(settings, before) == 0
    card.write_text("9000\n")
    (less := tmp_path / "less").write_text("600\n")
    freed = threading.Timer(1.0, lambda: less.replace(card))
    freed.start()
    assert device.unfreed_memory(settings, before) == 0
    freed.join()
    card.write_text("9000\n")
    monkeypatch.setattr(device, "FREEING_SECONDS", 0.1)
    assert device.unfreed_memory(settings, before) == 8500 << 20


def test_the_sweep_records_the_temperature_of_the_device_if_known(card: Path, backend: Backend) -> None:
    sweep = Sweep("gpu-1", backend.settings, queue.make_app(backend.settings), backend.sessions, backend.storage)
    for output, temperature in (("561\n", 561), ("563\n", 563), ("61\n", 500), ("[N/A]\n", None)):
        card.write_text(output)
        sweep.send_heartbeat()
        with backend.sessions.begin() as session:
            assert session.get_one(Worker, "gpu-1").temperature == temperature


def test_without_nvml_nothing_is_waited_for(card: Path, settings: Settings) -> None:
    card.unlink()
    assert device.temperature(settings) is None
    assert device.used_memory(settings) is None
    assert device.unfreed_memory(settings, None) == device.unfreed_memory(settings, [0, 0]) == 0


def test_a_driver_that_does_not_answer_is_asked_once(
    card: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "QUERY_SECONDS", 0.5)
    started = tmp_path / "started"
    (tmp_path / "bin" / "nvidia-smi").write_text(f"#!/bin/sh\necho >> {started}\nexec sleep 3600\n")
    monkeypatch.setattr(subprocess.Popen, "kill", lambda process: None)  # as if it hung in the driver
    given_up = list[subprocess.Popen[str]]()
    monkeypatch.setattr(devices, "_given_up", given_up)
    assert [device.used_memory(settings), device.temperature(settings)] == [None, None]
    assert started.read_text() == "\n"
    for process in given_up:
        process.terminate()
        process.communicate()
