"""Keep the cache of hub models on this machine below its limit: delete the least recently used models.

A process that uses a model holds a shared lock on the model's lock file. The kernel releases the lock when the process
ends, even if it is killed. Only a model without such a lock is deleted. A model that no process of this service has
ever used has no lock file and is never deleted: the cache may also belong to a user of the machine.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import huggingface_hub as hub
from huggingface_hub import constants

from core.infra import folders
from seft.errors import SourceError
from seft.models.hub_files import REFUSED
from seft.models.source import ModelSource

LOCKS = ".seft-locks"
SPARE_BYTES = 1 << 30
"""Bytes that stay free on the disk after a download."""


class CacheFullError(OSError):
    """The disk of the cache has too little space for a model, even after all unused models were deleted."""

    def __init__(self, problem: str) -> None:
        way_out = "Free space on the disk of the hub cache: a job that waits for it is tried again within an hour."
        super().__init__(errno.ENOSPC, f"{problem} {way_out}")


def folder_of(source: ModelSource) -> Path:
    """Return the folder of a hub model in the cache. It may not exist yet."""
    return Path(constants.HF_HUB_CACHE) / f"models--{source.reference.replace('/', '--')}"


@contextmanager
def using(source: ModelSource, limit: int, *, weights: bool = True) -> Iterator[int | None]:
    """Make space for the files of a hub model that are not cached yet, and protect the model during the `with` block.

    Yields the descriptor of the lock. A program that inherits it also protects the model. If the files of the model are
    outside the hub cache, does nothing and yields None.

    `limit` is the maximum size of the cache in bytes; 0 means no limit. Raises SourceError if the model is larger than
    the limit, and CacheFullError if the disk has too little space.
    """
    if source.path is not None:
        yield None
        return
    folder = folder_of(source)
    with _lock_file(folder) as lock:
        if source.bytes(weights=weights) <= limit or not limit:
            _delete_other_commits(source, folder, lock, limit, weights=weights)
        fcntl.flock(lock, fcntl.LOCK_SH)
        with suppress(PermissionError):  # a lock file of another user may not be changed
            os.utime(lock)
        _make_space(source, folder, limit, weights=weights)
        yield lock


def _make_space(source: ModelSource, folder: Path, limit: int, *, weights: bool) -> None:
    if limit and source.bytes(weights=weights) > limit:
        message = f"a model must have at most {limit} bytes, the limit of the cache of the machine;"
        way_out = "Choose a smaller model, or ask the operator to raise SEFT_HUB_CACHE_BYTES."
        size = source.bytes(weights=weights)
        raise SourceError(REFUSED, f"{message} {source.reference!r} has {size} bytes. {way_out}")
    missing = _missing(source, weights=weights)
    candidates = _least_recently_used(folder)
    while missing and not _fits(missing, folder.parent, limit):
        oldest = next(candidates, None)
        if oldest is None:
            free = shutil.disk_usage(folder.parent).free
            if missing + SPARE_BYTES > free:
                need = f"The download of {source.reference} needs {missing} bytes, and {SPARE_BYTES} must stay free;"
                raise CacheFullError(f"{need} only {free} are free.")
            return  # every other model is in use: the cache exceeds its limit until one is free
        _delete_unused(oldest)


def _missing(source: ModelSource, *, weights: bool) -> int:
    return sum(source.sizes[name] for name in source.files(weights=weights) if not _is_cached(source, name))


def _is_cached(source: ModelSource, name: str) -> bool:
    return isinstance(hub.try_to_load_from_cache(source.reference, name, revision=source.revision), str)


def _fits(missing: int, cache: Path, limit: int) -> bool:
    used = sum(folders.size(folder) for folder in _folders(cache)) if limit else 0
    return missing + SPARE_BYTES <= shutil.disk_usage(cache).free and (not limit or used + missing <= limit)


def _folders(cache: Path) -> list[Path]:
    """Return the folders of the models that this service has used."""
    return [cache / lock.name for lock in (cache / LOCKS).iterdir() if (cache / lock.name).is_dir()]


def _least_recently_used(own: Path) -> Iterator[Path]:
    locks = own.parent / LOCKS
    others = [folder for folder in _folders(own.parent) if folder != own]
    yield from sorted(others, key=lambda folder: (locks / folder.name).stat().st_mtime)


def _delete_other_commits(source: ModelSource, folder: Path, lock: int, limit: int, *, weights: bool) -> None:
    """If space is needed and no process uses the model, delete all its commits except the commit of `source`."""
    if not folder.is_dir() or not (missing := _missing(source, weights=weights)):
        return
    if not _fits(missing, folder.parent, limit):
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            cache = hub.scan_cache_dir(folder.parent)
            own = frozenset(repo for repo in cache.repos if repo.repo_path == folder.resolve())
            others = {commit.commit_hash for repo in own for commit in repo.revisions} - {source.revision}
            # Another model may have commits with the same hash, so only this model is given to the deletion.
            replace(cache, repos=own).delete_revisions(*sorted(others)).execute()


def _delete_unused(folder: Path) -> None:
    """Delete a model from the cache, unless a process uses it."""
    with _lock_file(folder) as lock, suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _lock_file(folder: Path) -> Iterator[int]:
    (locks := folder.parent / LOCKS).mkdir(parents=True, exist_ok=True)
    path = locks / folder.name
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except PermissionError:  # another user of the machine owns the file; to lock it, the right to read it is enough
        lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield lock
    finally:
        os.close(lock)
