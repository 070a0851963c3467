"""Remote sources of datasets: an object in an S3 bucket that the operator allows, or a dataset on the model hub.

The formats are `s3://bucket/key` and `hf://datasets/owner/name[@revision][/path/to/file]`. The path is required if
the hub dataset has several data files. A revision has no slash, except `refs/convert/…` and `refs/pr/…`. A fetched file
is checked like an uploaded one.
"""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import huggingface_hub as hub
from botocore.exceptions import ClientError
from httpx2 import HTTPError
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from core.access.hub_tokens import HOW_TO_SET
from core.errors import Code, Flaw, ProblemError
from core.infra import temporary
from core.infra.storage import Storage, is_outage, status_of
from seft.data.records import COMPRESSED_ENDING, DATA_ENDING
from seft.errors import SourceError
from seft.models.hub_files import HUB_SECONDS, describe, describe_failure

_S3 = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(.+)")
_HUB = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@(refs/(?:convert|pr)/[\w.-]+|[\w.-]+))?(?:/(.+))?", re.ASCII)
_DATA_FILE = re.compile(rf".+{DATA_ENDING}{COMPRESSED_ENDING}?")
DENIED = (401, 403, 404)


def require_allowed(source: str, buckets: Sequence[str]) -> str:
    """Return the name of the file that a source points to. Raises INVALID_REQUEST if the source is not allowed.

    `buckets` are the allowed buckets, each in the form `bucket` or `bucket/prefix`.
    """
    if match := _S3.fullmatch(source):
        bucket, key = match.groups()
        _require_plain_path(source, key)
        if not any(_allows(allowed, bucket, key) for allowed in buckets):
            way_out = (
                f"The operator allows these buckets: {', '.join(buckets)}."
                if buckets
                else "The operator allows no buckets. Upload the file itself with POST /datasets."
            )
            raise _invalid("must be in a bucket that the operator allows", source, way_out)
        return key
    if match := _HUB.fullmatch(source):
        name, revision, path = match.groups()
        for part in (name, revision, path):
            if part is not None:
                _require_plain_path(source, part)
        return path or name
    raise _invalid(
        "must be s3://bucket/key or hf://datasets/owner/name",
        source,
        "Write it like s3://bucket/data.jsonl or hf://datasets/owner/name.",
    )


def _require_plain_path(source: str, path: str) -> None:
    """Raise INVALID_REQUEST if a server or a client could read the path as another path."""
    if "\\" in path or not {"", ".", ".."}.isdisjoint(path.split("/")):
        rule = "must have no backslash, and no part between slashes that is empty, `.` or `..`"
        raise _invalid(rule, source, "Name the object by its full key, such as s3://bucket/folder/data.jsonl.")


@contextmanager
def open_source(storage: Storage, source: str, max_bytes: int, token: Callable[[], str | None]) -> Iterator[BinaryIO]:
    """Open a source as a file. `require_allowed` must have accepted the source.

    The first request to the hub uses no token of the tenant. If the hub rejects it, `token` is called to get the
    tenant's token, and the download is tried again with it. Raises ProblemError if the source cannot be read or is
    larger than `max_bytes`.
    """
    if match := _S3.fullmatch(source):
        bucket, key = match.groups()
        with _open_object(storage, source, bucket, key, max_bytes) as file:
            yield file
        return
    with temporary.folder() as folder:
        download = partial(_download, source, max_bytes, folder)
        try:
            path = download(token=None)
        except ProblemError as problem:
            if problem.code is not Code.NOT_FOUND or (tenant_token := token()) is None:
                raise
            path = download(token=tenant_token)
        with path.open("rb") as file:
            yield file


def _open_object(storage: Storage, source: str, bucket: str, key: str, max_bytes: int) -> BinaryIO:
    try:
        file = storage.open(key, bucket)
        _require_size(file.seek(0, io.SEEK_END), max_bytes)
        file.seek(0)
        file.read(1)  # an archived object, for example, answers HEAD and refuses GET
        file.seek(0)
    except ClientError as error:
        if is_outage(error) and status_of(error) not in DENIED:
            raise
        raise _missing(source, f"{source} does not exist, or the service may not read it.") from error
    return file


def _download(source: str, max_bytes: int, folder: Path, *, token: str | None) -> Path:
    """Download a file of a hub dataset and return its path.

    `token` is the tenant's token. If it is None, the process's own token is used.
    """
    match = _HUB.fullmatch(source)
    assert match
    name, revision, path = match.groups()
    with _hub_errors(source, name, revision):
        if path is None:
            path, size, commit = _only_data_file(source, name, revision, token)
        else:
            url = hub.hf_hub_url(name, path, repo_type="dataset", revision=revision)
            found = hub.get_hf_file_metadata(url, token=token, timeout=HUB_SECONDS)
            size, commit = found.size or 0, found.commit_hash
        _require_size(size, max_bytes)
        return Path(
            hub.hf_hub_download(
                name,
                path,
                repo_type="dataset",
                revision=commit,
                local_dir=folder,
                etag_timeout=HUB_SECONDS,
                token=token,
            )
        )


@contextmanager
def _hub_errors(source: str, name: str, revision: str | None) -> Iterator[None]:
    """Convert errors of the hub's client to ProblemError."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        message = f"The service cannot download {name} from the hub, because HF_HUB_OFFLINE is set."
        raise _missing(source, message) from error
    except LocalEntryNotFoundError as error:  # a subclass of EntryNotFoundError, but it means that the hub is down
        raise _unreachable(name, error) from error
    except EntryNotFoundError as error:
        way_out = "Check the name of the file. If the dataset has only one data file, you can leave it out."
        raise _invalid("must name a file of the dataset", source, way_out) from error
    except RevisionNotFoundError as error:
        raise _missing(source, f"The dataset {name} has no revision {revision!r}.", "Check the revision.") from error
    except GatedRepoError as error:
        way_out = f"Accept its terms on the hub, and set a hub token of that account with {HOW_TO_SET}."
        raise _missing(source, f"The dataset {name} is gated.", way_out) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        way_out = f"Check the name. For a private dataset, set your tenant's hub token with {HOW_TO_SET}."
        raise _missing(source, f"The hub has no public dataset {name}.", way_out) from error
    except (HTTPError, OSError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in DENIED:
            way_out = "Check that your tenant's hub token may read it."
            raise _missing(source, f"The hub denied access to {name}.", way_out) from error
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> ProblemError:
    message = f"Downloading {name} from the hub failed ({describe_failure(error)}). Try again later."
    return ProblemError(Code.HUB_UNREACHABLE, message)


def _only_data_file(source: str, name: str, revision: str | None, token: str | None) -> tuple[str, int, str | None]:
    """Return name and size of the only data file of a hub dataset, and the commit of the revision.

    Raises INVALID_REQUEST if there is not exactly one, or if the list of files cannot be read.
    """
    try:
        info = describe(name, hub.DatasetInfo, revision=revision, token=token)
    except SourceError as error:
        rule = "must name a file, because the hub's list of the files of this dataset is too long or malformed"
        raise _invalid(rule, source, f"Name the file: {source}/FILE") from error
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
    data = sorted(filter(_DATA_FILE.fullmatch, sizes))
    if not data:
        way_out = "Choose a dataset with a file in JSONL or Parquet."
        raise _invalid("must have a data file", f"{source}, which has none", way_out)
    if len(data) > 1:
        value = f"{len(data)} data files: {', '.join(data[:10])}"
        raise _invalid("must name exactly one data file", value, f"Name one file, such as {source}/{data[0]}")
    return data[0], sizes[data[0]], info.sha


def _require_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        way_out = "Split the file, or ask the operator to raise SEFT_MAX_DATASET_BYTES."
        raise _invalid(f"must have at most {max_bytes} bytes", f"{size} bytes", way_out)


def _allows(allowed: str, bucket: str, key: str) -> bool:
    """Return whether this object is in `allowed`, which is a bucket or a bucket with a key prefix (`bucket/prefix`)."""
    allowed_bucket, _, prefix = allowed.partition("/")
    return allowed_bucket == bucket and (not prefix or key.startswith(f"{prefix.rstrip('/')}/"))


def _invalid(rule: str, value: str, way_out: str) -> ProblemError:
    flaw = Flaw("source", rule, value, way_out)
    return ProblemError(Code.INVALID_REQUEST, f"The `source` {rule}; it is {value}.", (flaw,))


def _missing(source: str, detail: str, way_out: str = "Check the name and the access rights.") -> ProblemError:
    flaw = Flaw("source", "must exist and be readable by the service", source, way_out)
    return ProblemError(Code.NOT_FOUND, f"{detail} {way_out}", (flaw,))
