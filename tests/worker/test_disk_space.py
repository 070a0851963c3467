"""Room on the disk."""

import shutil
from pathlib import Path

import pytest

from worker import disk_space


def test_a_job_waits_for_room_for_all_that_it_writes_and_not_for_the_shortfall(tmp_path: Path) -> None:
    (tmp_path / "half").write_bytes(bytes(1000))
    needed = shutil.disk_usage(tmp_path).total
    with pytest.raises(disk_space.NoDiskSpaceError) as caught:
        disk_space.require_space(tmp_path, needed)
    assert caught.value.needed == needed
    assert disk_space.required_space(tmp_path, needed) == needed + 1000 + disk_space.RESERVE_BYTES


def test_a_job_whose_demand_nobody_knows_waits_for_more_room_than_there_was(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert disk_space.required_space(tmp_path, None) > free - (16 << 20)  # others write meanwhile
