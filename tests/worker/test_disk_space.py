"""Free disk space."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.states import LARGEST_NEED
from worker import disk_space


def test_a_job_waits_for_space_for_everything_that_it_writes(tmp_path: Path) -> None:
    (tmp_path / "half").write_bytes(bytes(1000))
    needed = shutil.disk_usage(tmp_path).total
    with pytest.raises(disk_space.NoDiskSpaceError) as caught:
        disk_space.require_space(tmp_path, needed)
    assert caught.value.needed == needed
    assert disk_space.required_space(tmp_path, needed) == needed + 1000 + disk_space.RESERVE_BYTES


def test_a_job_with_unknown_needs_waits_for_more_space_than_there_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half").write_bytes(bytes(1000))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=5000))
    assert disk_space.required_space(tmp_path, None) == 5000 + 1000 + disk_space.RESERVE_BYTES


def test_a_job_that_failed_on_a_disk_with_space_waits_for_no_more_than_it_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quota is exceeded, no file can be created, or somebody has freed space since."""
    (tmp_path / "half").write_bytes(bytes(1000))
    free = disk_space.RESERVE_BYTES + 1
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    assert disk_space.required_space(tmp_path, None) < free + 1000


def test_a_huge_sparse_file_gives_a_number_that_the_database_can_compare(tmp_path: Path) -> None:
    assert disk_space.required_space(tmp_path, 1 << 70) == LARGEST_NEED < 1 << 63
