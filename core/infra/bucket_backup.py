"""Back up the bucket to a folder, and restore the bucket from the folder.

An object never changes after it was stored, so a file that is already in the folder is not downloaded again. Run
`save` once before and once after the dump of the database. The folder then contains every object that the dump refers
to, except objects that were created and deleted between the two runs. This is usually the saved state of a running job.
After a restore, such a job starts again from the beginning.

The id of the owner of the bucket (`OWNER`) is not copied: it is in the database.
"""

import re
from pathlib import Path

from botocore.exceptions import ClientError

from core.infra.storage import Storage, is_missing

OWNER = "service"
"""Key of the object with the id of the service that owns the bucket. See `core.bucket_owner`."""
PART = ".part"
REMAINS = re.compile(rf"\{PART}(\.[0-9a-fA-F]{{8}})?$")
"""End of the name of an incomplete file. boto3 adds eight digits to the name while it writes the file."""


def save(storage: Storage, folder: Path) -> int:
    """Download the objects that are not in the folder yet, and return their number.

    An object that is deleted in the meantime is skipped. Incomplete files of a killed `save` are deleted.
    """
    for path in list(folder.rglob("*")):
        if REMAINS.search(path.name):
            path.unlink()
    fetched = 0
    for key in storage.keys(""):
        path = folder / key
        if key == OWNER or path.exists():
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
    """Upload all files of the folder to the bucket, and return their number. Creates the bucket if it is missing."""
    storage.ensure_bucket()
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not REMAINS.search(path.name)
    }
    files.pop(OWNER, None)
    for key, path in files.items():
        storage.upload(path, key)
    return len(files)
