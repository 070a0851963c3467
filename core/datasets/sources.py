"""Where a dataset may be fetched from: `s3://bucket/key` of a bucket that the operator opened, or a file of the hub.

A hub dataset is `hf://datasets/owner/name`, with `/path/of/a/file` behind it where it has several, and a revision
beside it. What is fetched is checked like any upload.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
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
from core.infra.storage import Storage
from seft.models.source import HUB_SECONDS

_S3 = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(.+)")
_HUB = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/(.+))?")
_DATA = re.compile(r".+\.(jsonl|json|parquet)(\.gz|\.zst)?")
REFUSALS = (401, 403, 404)


def require_allowed(source: str, buckets: Sequence[str]) -> str:
    """The file name that a source ends in; INVALID_REQUEST where it may be none."""
    if found := _S3.fullmatch(source):
        bucket, key = found.groups()
        if not any(_holds(place, bucket, key) for place in buckets):
            open_ones = ", ".join(buckets) or "none"
            raise _invalid("lies in a bucket that is open to you", source, f"Open are: {open_ones}.")
        return key
    if found := _HUB.fullmatch(source):
        return found[3] or found[1]
    raise _invalid("is s3://bucket/key or hf://datasets/owner/name", source, "Write it like one of them.")


@contextmanager
def open_source(storage: Storage, source: str, most: int, token: Callable[[], str | None]) -> Iterator[BinaryIO]:
    """A source that was checked, as a file; ProblemError where it is not there or larger than `most`.

    Where the hub refuses it to the service, `token` is called, and what it gives is shown.
    """
    if found := _S3.fullmatch(source):
        with _object(storage, *found.groups()) as file:
            yield file
        return
    found = _HUB.fullmatch(source)
    assert found
    with TemporaryDirectory() as folder:
        fetched = partial(_fetched, found[1], found[2], found[3], most, Path(folder))
        try:
            path = fetched(token=None)
        except ProblemError as problem:
            if problem.code is not Code.NOT_FOUND or (another := token()) is None:
                raise
            path = fetched(token=another)
        with path.open("rb") as file:
            yield file


def _object(storage: Storage, bucket: str, key: str) -> BinaryIO:
    try:
        return storage.open(key, bucket)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] not in REFUSALS:
            raise
        raise _missing(f"s3://{bucket}/{key}", "The service finds no such object, or may not read it.") from error


def _fetched(name: str, revision: str | None, path: str | None, most: int, folder: Path, *, token: str | None) -> Path:
    """A file of a hub dataset, downloaded with this token, or the process's own."""
    try:
        api = hub.HfApi(token=token)
        info = api.dataset_info(name, revision=revision, timeout=HUB_SECONDS, files_metadata=True)
        sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
        chosen = _chosen(name, path, list(sizes))
        if sizes[chosen] > most:
            raise _invalid(f"has at most {most} bytes", f"{sizes[chosen]} bytes", "Split it, or have the limit raised.")
        return Path(
            api.hf_hub_download(
                name, chosen, repo_type="dataset", revision=info.sha, local_dir=folder, etag_timeout=HUB_SECONDS
            )
        )
    except OfflineModeIsEnabled as error:
        raise _missing(name, "The service works without the hub: HF_HUB_OFFLINE is set.") from error
    except LocalEntryNotFoundError as error:  # one of the errors below to its class, and none to its meaning
        raise _unreachable(name, error) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError, HFValidationError) as error:
        told = "The hub shows no such dataset. A private or gated one needs your tenant's hub token: PUT /hub-token."
        raise _missing(name, told) from error
    except (HTTPError, OSError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in REFUSALS:
            raise _missing(
                name, "The hub does not let the service read it. Is your tenant's hub token good?"
            ) from error
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> ProblemError:
    return ProblemError(Code.HUB_UNREACHABLE, f"The hub did not give {name}: {error}")


def _chosen(name: str, path: str | None, names: Sequence[str]) -> str:
    data = sorted(each for each in names if _DATA.fullmatch(each))
    if path is None and len(data) == 1:
        return data[0]
    if path in names and path is not None:
        return path
    seen = f"{len(data)}: {', '.join(data[:10])}" if path is None else path
    way_out = f"Name one: hf://datasets/{name}/{data[0] if data else 'train.jsonl'}"
    raise _invalid("names one file of records", seen, way_out)


def _holds(place: str, bucket: str, key: str) -> bool:
    opened, _, prefix = place.partition("/")
    return opened == bucket and (not prefix or key.startswith(f"{prefix.rstrip('/')}/"))


def _invalid(rule: str, value: str, way_out: str) -> ProblemError:
    flaw = Flaw("source", rule, value, way_out)
    return ProblemError(Code.INVALID_REQUEST, f"The source must be one that {rule}.", (flaw,))


def _missing(source: str, detail: str) -> ProblemError:
    flaw = Flaw("source", "names something that the service can read", source, "Check the name and its rights.")
    return ProblemError(Code.NOT_FOUND, detail, (flaw,))
