"""Reads parts of the files of a model on the hub, and converts the errors of the hub's client to SourceError.

Nothing is stored on disk. Each read has a limit in bytes and in seconds, whatever the hub sends.
"""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import quote

import huggingface_hub as hub
from httpx2 import HTTPError, ReadTimeout, Response, TooManyRedirects
from huggingface_hub import constants
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
from huggingface_hub.utils._validators import validate_repo_id

from seft.errors import DISK_FULL, SourceError
from seft.models.limits import parse_json

NOT_FOUND, REFUSED, UNREACHABLE = "model_not_found", "model_refused", "hub_unreachable"
HUB_SECONDS = 10.0
MAX_LISTING_BYTES = 8 << 20
"""Largest description of a repository, which names its files. One file needs about 300 bytes."""
_ERROR_BYTES = 1 << 16
"""Bytes that are read of the body of an error. The hub's client looks for a reason in it."""
_REDIRECTS = 5
DENIED_STATUSES = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
"""HTTP statuses of the hub if the caller has no access to a model, or if the hub does not know the token."""
_KINDS = {hub.ModelInfo: "model", hub.DatasetInfo: "dataset"}
_HOW_TO_SET = "with HF_TOKEN on your own machine or PUT /hub-token (`seft hub-token set`) on the service"

Info = TypeVar("Info", hub.ModelInfo, hub.DatasetInfo)

constants.HF_HUB_DISABLE_XET = True
# Downloads of hf_xet are stored outside of the folder of their model in the cache, where a confined process cannot read
# them and where no limit counts them. An outage is a RuntimeError there, without a status.


class AccessDeniedError(SourceError):
    """The hub denies access to this model or its files. A different token may have access."""


def is_reachable() -> bool:
    """Return whether the hub answers, and not with an error of its server."""
    try:
        return not hub.get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS).is_server_error
    except (HTTPError, OSError):
        return False


def read_part(reference: str, name: str, start: int, size: int, *, revision: str | None, token: str | None) -> bytes:
    """Return at most `size` bytes of a file of a hub model, from offset `start`.

    Raises the errors of the hub's client, and ReadTimeout if the file does not arrive within `HUB_SECONDS`.
    """
    url = hub.hf_hub_url(reference, name, revision=revision)
    response = _get(url, size, token, Range=f"bytes={start}-{start + size - 1}")
    if start and response.status_code != HTTPStatus.PARTIAL_CONTENT:
        raise ValueError(f"the hub must be able to send a part of {name}; it sent status {response.status_code}")
    return response.content


def describe(reference: str, info: type[Info], *, revision: str | None, token: str | None) -> Info:
    """Return the hub's description of a model or a dataset, with the names and sizes of its files.

    Raises the errors of the hub's client, and SourceError if the description is malformed or has more than
    `MAX_LISTING_BYTES` bytes.
    """
    validate_repo_id(reference)
    at = "" if revision is None else f"/revision/{quote(revision, safe='')}"
    kind = _KINDS[info]
    url = f"{constants.ENDPOINT}/api/{kind}s/{reference}{at}?blobs=True"
    content = _get(url, MAX_LISTING_BYTES + 1, token).content
    if len(content) > MAX_LISTING_BYTES:
        rule = f"the hub's description of a {kind} may have at most {MAX_LISTING_BYTES} bytes"
        raise SourceError(REFUSED, f"{rule}; {reference!r} has a longer one. Choose a {kind} with fewer files.")
    try:
        return info(**parse_json(content))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        message = f"the hub's description of {reference!r} is malformed: {error!r}. Choose a different {kind}."
        raise SourceError(REFUSED, message) from error


def _get(url: str, size: int, token: str | None, **headers: str) -> Response:
    """Return the answer of the hub with at most `size` bytes of its body. Raises the errors of the hub's client.

    The hub's client would read the whole body of an error or of a redirect.
    """
    session, deadline = hub.get_session(), time.monotonic() + HUB_SECONDS
    headers["Accept-Encoding"] = "identity"  # a compressed body could be small on the way and large in memory
    if token is None and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        token = hub.get_token()
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    request = session.build_request("GET", url, headers=headers, timeout=HUB_SECONDS)
    for _ in range(_REDIRECTS + 1):
        with closing(session.send(request, stream=True, follow_redirects=False)) as response:
            if response.next_request is None:
                if response.is_error:
                    size = _ERROR_BYTES
                content = _read(response, size, deadline)
                break
            request = response.next_request
    else:
        raise TooManyRedirects(f"{url} has more than {_REDIRECTS} redirects", request=request)
    kept = {name: value for name, value in response.headers.items() if name.startswith("x-")}
    limited = Response(response.status_code, headers=kept, content=content, request=response.request)
    hub.hf_raise_for_status(limited)
    limited.raise_for_status()  # `hf_raise_for_status` accepts a redirect without a target
    return limited


def _read(response: Response, size: int, deadline: float) -> bytes:
    content = bytearray()
    for block in response.iter_raw():
        content += block
        if len(content) >= size:
            break
        if time.monotonic() > deadline:
            raise ReadTimeout(f"the answer did not arrive within {HUB_SECONDS:.0f} s")
    return bytes(content[:size])


@contextmanager
def hub_errors(reference: str, revision: str | None) -> Iterator[None]:
    """Convert errors of the hub's client to SourceError, except OfflineModeIsEnabled and the error of a full disk."""
    try:
        yield
    except OfflineModeIsEnabled:
        raise
    except LocalEntryNotFoundError as error:  # a subclass of an error below, with a different meaning
        raise _unreachable(reference, error) from error
    except GatedRepoError as error:
        message = f"{reference} is gated. Accept its terms on the hub, and set a token that may read it, {_HOW_TO_SET}."
        raise AccessDeniedError(REFUSED, message) from error
    except RepositoryNotFoundError as error:
        message = (
            f"the hub has no public model {reference!r}. Check the name. For a private model set a token,"
            f" {_HOW_TO_SET}."
        )
        raise AccessDeniedError(NOT_FOUND, message) from error
    except (RevisionNotFoundError, EntryNotFoundError, HFValidationError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise SourceError(
            NOT_FOUND, f"the hub has no model {reference!r}{at}. Check the name and the revision."
        ) from error
    except (HTTPError, OSError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in DENIED_STATUSES:
            message = f"the hub denies access to {reference}. Set a token that may read it, {_HOW_TO_SET}."
            raise AccessDeniedError(REFUSED, message) from error
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        raise _unreachable(reference, error) from error


def _unreachable(reference: str, error: Exception) -> SourceError:
    return SourceError(
        UNREACHABLE, f"the hub did not answer for {reference}: {describe_failure(error)}. Try again later."
    )


def describe_failure(error: Exception) -> str:
    """Return what failed, without the text of the error. The text may contain a signed link to a file."""
    if isinstance(response := getattr(error, "response", None), Response):
        return f"{type(error).__name__}, status {response.status_code}"
    reason = getattr(error, "strerror", None)
    return f"{type(error).__name__}, {reason}" if reason else type(error).__name__
