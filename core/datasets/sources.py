"""Remote sources of datasets: an object in an S3 bucket that the operator allows, or a dataset on the model hub.

The formats are `s3://bucket/key` and `hf://datasets/owner/name[@revision][/path/to/file]`. The path is required if
the hub dataset has several data files. A fetched file is checked like an uploaded one.
"""

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
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from core.errors import Code, Flaw, ProblemError
from core.infra import temporary
from core.infra.storage import Storage
from seft.models.hub_files import HUB_SECONDS, describe_failure

_S3 = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(.+)")
_HUB = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/(.+))?", re.ASCII)
_DATA_FILE = re.compile(r".+\.(jsonl|json|parquet)(\.gz|\.zst)?")
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
        with _open_object(storage, *match.groups()) as file:
            yield file
        return
    match = _HUB.fullmatch(source)
    assert match
    with temporary.folder() as folder:
        download = partial(_download, match[1], match[2], match[3], max_bytes, folder)
        try:
            path = download(token=None)
        except ProblemError as problem:
            if problem.code is not Code.NOT_FOUND or (tenant_token := token()) is None:
                raise
            path = download(token=tenant_token)
        with path.open("rb") as file:
            yield file


def _open_object(storage: Storage, bucket: str, key: str) -> BinaryIO:
    try:
        return storage.open(key, bucket)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] not in DENIED:
            raise
        message = f"s3://{bucket}/{key} does not exist, or the service may not read it."
        raise _missing(f"s3://{bucket}/{key}", message) from error


def _download(
    name: str, revision: str | None, path: str | None, max_bytes: int, folder: Path, *, token: str | None
) -> Path:
    """Download a file of a hub dataset and return its path.

    `token` is the tenant's token. If it is None, the process's own token is used.
    """
    try:
        api = hub.HfApi(token=token)
        info = api.dataset_info(name, revision=revision, timeout=HUB_SECONDS, files_metadata=True)
        sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
        chosen = _choose_file(name, path, list(sizes))
        if sizes[chosen] > max_bytes:
            way_out = "Split the file, or ask the operator to raise SEFT_MAX_DATASET_BYTES."
            raise _invalid(f"must have at most {max_bytes} bytes", f"{sizes[chosen]} bytes", way_out)
        return Path(
            api.hf_hub_download(
                name, chosen, repo_type="dataset", revision=info.sha, local_dir=folder, etag_timeout=HUB_SECONDS
            )
        )
    except OfflineModeIsEnabled as error:
        raise _missing(
            name, f"The service cannot download {name} from the hub, because HF_HUB_OFFLINE is set."
        ) from error
    except LocalEntryNotFoundError as error:  # a subclass of EntryNotFoundError, but it means that the hub is down
        raise _unreachable(name, error) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError, HFValidationError) as error:
        message = (
            f"The hub has no dataset {name}. If it is private or gated, set your tenant's hub token with PUT"
            " /hub-token."
        )
        raise _missing(name, message) from error
    except (HTTPError, OSError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in DENIED:
            message = f"The hub denied access to {name}. Check that your tenant's hub token may read it."
            raise _missing(name, message) from error
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> ProblemError:
    message = f"Downloading {name} from the hub failed ({describe_failure(error)}). Try again later."
    return ProblemError(Code.HUB_UNREACHABLE, message)


def _choose_file(name: str, path: str | None, names: Sequence[str]) -> str:
    """Return the name of the file to download: `path`, or the only data file of the dataset if `path` is None.

    Raises INVALID_REQUEST if there is no such file, or if `path` is None and there is not exactly one data file.
    """
    data = sorted(each for each in names if _DATA_FILE.fullmatch(each))
    if path is None and len(data) == 1:
        return data[0]
    if path in names and path is not None:
        return path
    value = f"{len(data)} data files: {', '.join(data[:10])}" if path is None else path
    way_out = f"Name one file, such as hf://datasets/{name}/{data[0] if data else 'train.jsonl'}"
    raise _invalid("must name exactly one data file", value, way_out)


def _allows(allowed: str, bucket: str, key: str) -> bool:
    """Return whether this object is in `allowed`, which is a bucket or a bucket with a key prefix (`bucket/prefix`)."""
    allowed_bucket, _, prefix = allowed.partition("/")
    return allowed_bucket == bucket and (not prefix or key.startswith(f"{prefix.rstrip('/')}/"))


def _invalid(rule: str, value: str, way_out: str) -> ProblemError:
    flaw = Flaw("source", rule, value, way_out)
    return ProblemError(Code.INVALID_REQUEST, f"The `source` {rule}; it is {value}.", (flaw,))


def _missing(source: str, detail: str) -> ProblemError:
    rule, way_out = "must exist and be readable by the service", "Check the name and the access rights."
    flaw = Flaw("source", rule, source, way_out)
    return ProblemError(Code.NOT_FOUND, detail, (flaw,))
