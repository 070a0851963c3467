"""The bucket as a folder: what a backup keeps of it, and the way back.

Objects never change under their keys, and what is in the folder already is not fetched again. So a folder that is
filled before and after the database is written down has all that its rows name, but for the state of a job that ran:
it may be made after the first time and replaced before the second, and then the job begins anew.
"""

from pathlib import Path

from botocore.exceptions import ClientError

from core.infra.storage import Storage, missing

PART = ".part"


def save(storage: Storage, folder: Path) -> int:
    """Fetch what the folder lacks; how many objects that was. One that is deleted meanwhile is left out."""
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
            if not missing(error):
                raise
            continue
        part.rename(path)
        fetched += 1
    return fetched


def load(storage: Storage, folder: Path) -> int:
    """Put everything from the folder into the bucket, which is made where it is missing; how many objects."""
    storage.ensure_bucket()
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != PART]
    for path in files:
        storage.upload(path, path.relative_to(folder).as_posix())
    return len(files)
