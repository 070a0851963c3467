"""The cache of hub models stays below its limit, and keeps what a process uses or what a user of the machine stored."""

import os
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from core.models import hub_cache
from core.models.hub_cache import CacheFullError, using
from seft.errors import SourceError
from seft.models.source import Kind, ModelSource, fetch, find_on_hub
from tests.hollow import write_hollow
from tests.hub import Repo, hub, use_hub

NAMES = ("owner/first", "owner/second", "owner/third")
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache, and a hub with three models."""
    folder = write_hollow(tmp_path / "repo")
    with hub({name: Repo(folder) for name in NAMES}) as endpoint:
        use_hub(monkeypatch, endpoint, tmp_path / "cache")
        yield tmp_path / "cache"


def use(name: str, limit: int, seconds: int = 0) -> ModelSource:
    """Download a model as a job does. The last use is `seconds` after the epoch."""
    source = find_on_hub(name, None)
    with using(source, limit):
        fetch(source)
    os.utime(Path(constants.HF_HUB_CACHE) / ".seft-locks" / folder(name), (seconds, seconds))
    return source


def folder(name: str) -> str:
    return f"models--{name.replace('/', '--')}"


def cached(cache: Path) -> list[str]:
    weights = cache.glob("models--*/snapshots/*/model.safetensors")
    return sorted(file.parents[2].name.rpartition("--")[2] for file in weights)


def test_the_least_recently_used_model_is_deleted_first(cache: Path) -> None:
    size = use(NAMES[0], 0, seconds=2).bytes()
    use(NAMES[1], 0, seconds=1)
    use(NAMES[2], 5 * size // 2, seconds=3)
    assert cached(cache) == ["first", "third"]


def test_a_model_that_is_used_again_counts_as_recently_used_without_a_download(cache: Path) -> None:
    first = use(NAMES[0], 0, seconds=1)
    use(NAMES[1], 0, seconds=2)
    with using(first, 0):
        pass
    use(NAMES[2], 5 * first.bytes() // 2)
    assert cached(cache) == ["first", "third"]


def test_a_model_in_use_and_a_model_of_another_program_are_kept(cache: Path) -> None:
    fetch(find_on_hub(NAMES[0], None))
    second = use(NAMES[1], 0)
    with using(second, 0):
        use(NAMES[2], second.bytes())
        assert cached(cache) == ["first", "second", "third"]
    shutil.rmtree(cache / folder(NAMES[2]))
    use(NAMES[2], second.bytes())
    assert cached(cache) == ["first", "third"]


def test_old_commits_of_a_model_are_deleted_before_other_models(cache: Path) -> None:
    size = use(NAMES[1], 0).bytes()
    old = cache / folder(NAMES[0]) / "snapshots" / ("f" * 40) / "model.safetensors"
    blob = cache / folder(NAMES[0]) / "blobs" / "old"
    for file in (old, blob):
        file.parent.mkdir(parents=True)
    blob.write_bytes(bytes(size))
    old.symlink_to("../../blobs/old")
    use(NAMES[0], 5 * size // 2)
    assert not old.exists()
    assert not blob.exists()
    assert cached(cache) == ["first", "second"]


def test_a_model_larger_than_the_limit_is_refused(cache: Path) -> None:
    with pytest.raises(SourceError, match="must have at most 1000 bytes, the limit of the cache"):
        use(NAMES[0], 1000)
    assert cached(cache) == []


def test_space_is_made_before_a_download_and_a_full_disk_is_an_error(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = use(NAMES[0], 0)

    def usage(_: Path) -> Usage:
        kept = sum(file.stat().st_size for file in cache.glob("models--*/blobs/*"))
        return Usage(0, 0, hub_cache.SPARE_BYTES + disk - kept)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    disk = source.bytes() + 100_000
    use(NAMES[1], 0)
    assert cached(cache) == ["second"]
    disk = source.bytes() - 1
    with pytest.raises(CacheFullError, match=f"{source.bytes()} bytes.* Free space on the disk of the hub cache"):
        use(NAMES[2], 0)
    with using(source.__class__("local", Kind.FOLDER, cache, None, {}, None), 1):
        pass
