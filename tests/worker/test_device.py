"""What a worker finds that it has."""

from pathlib import Path

import pytest

from core.ability import CPU
from core.settings import Settings
from worker import device


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
