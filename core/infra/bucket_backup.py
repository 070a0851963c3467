"""Back up the bucket to a folder, and restore it from one.

An object never changes under its key, so files that the folder already has are not fetched again. Run `save` before and
after the dump of the database: then the folder has every object that the dump refers to. The only exception is the
saved state of a running job, which may be created and replaced between the two runs; that job then starts over.
"""

from pathlib import Path

from botocore.exceptions import ClientError

from core.infra.storage import Storage, is_missing

PART = ".part"


def save(storage: Storage, folder: Path) -> int:
    """Download the objects that the folder lacks, and return their number. Skip objects deleted in the meantime."""
    fetched = 0
    for key in storage.keys(""):
        path = folder / key
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + PART)
        try:
            storage.download(key, part)
        except ClientError as error:
            if not is_missing(error):
                raise
            continue
        part.rename(path)
        fetched += 1
    return fetched


def load(storage: Storage, folder: Path) -> int:
    """Upload all files of the folder, and return their number. Creates the bucket if it is missing."""
    storage.ensure_bucket()
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != PART]
    for path in files:
        storage.upload(path, path.relative_to(folder).as_posix())
    return len(files)
