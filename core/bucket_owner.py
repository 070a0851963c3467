"""The owner of a bucket. A service deletes objects without a row in its database, so services must not share a bucket.

The database has an id. When the API starts, it writes the id to the object `OWNER` of the bucket, if there is none. If
the bucket has the id of another database, the API does not start, and workers do not delete objects without a row.
"""

from botocore.exceptions import ClientError
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from core import ids
from core.infra.bucket_backup import OWNER
from core.infra.storage import Storage, is_missing
from core.tables import Service

ID_BYTES = 100
"""Maximum number of bytes that are read of an id."""
FIX = (
    "Set SEFT_S3_BUCKET to a bucket that no other service uses. If the other service does not exist any more, run"
    " `python -m api bucket claim`."
)


class ForeignBucketError(Exception):
    """The bucket belongs to another service."""


def service_id(session: Session) -> str:
    """Return the id of the service of this database. The first call makes it."""
    if found := session.scalars(select(Service.id)).one_or_none():
        return found
    session.execute(insert(Service).values(id=ids.new("svc")).on_conflict_do_nothing())
    return session.scalars(select(Service.id)).one()


def require_own_bucket(storage: Storage, service: str) -> None:
    """Make the service the owner of the bucket if it has none. Raises ForeignBucketError if it has another owner."""
    if owner(storage) is None:
        claim(storage, service)
    if foreign := foreign_owner(storage, service):
        raise ForeignBucketError(f"{foreign} {FIX}")


def claim(storage: Storage, service: str) -> None:
    """Make the service the owner of the bucket, whoever owned it before. Its id must be committed before."""
    storage.put(OWNER, service.encode())


def foreign_owner(storage: Storage, service: str) -> str:
    """Return a sentence that names the owner of the bucket if it is another service. If not, return an empty text."""
    found = owner(storage)
    if found in {None, service}:
        return ""
    return f"The bucket belongs to the service {found}; this service is {service}."


def owner(storage: Storage) -> str | None:
    """Return the id of the service that owns the bucket. None if it has no owner."""
    try:
        return storage.read(OWNER, ID_BYTES).decode(errors="replace").strip()
    except ClientError as error:
        if not is_missing(error):
            raise
        return None
