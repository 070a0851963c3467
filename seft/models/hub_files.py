"""Reads parts of the files of a model on the hub, and converts the errors of the hub's client to SourceError.

Nothing is stored on disk. Each read has a limit in bytes and in seconds, whatever the hub sends.
"""

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

import huggingface_hub as hub
from httpx2 import HTTPError, ReadTimeout
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
from huggingface_hub.utils._headers import build_hf_headers

from seft.errors import SourceError

NOT_FOUND, REFUSED, UNREACHABLE = "model_not_found", "model_refused", "hub_unreachable"
HUB_SECONDS = 10.0
DENIED_STATUSES = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
"""HTTP statuses of the hub if the caller has no access to a model, or if the hub does not know the token."""
_HOW_TO_SET = "with HF_TOKEN on your own machine or PUT /hub-token on the service"


class AccessDeniedError(SourceError):
    """The hub denies access to this model or its files. A different token may have access."""


def read_part(reference: str, name: str, start: int, size: int, *, revision: str | None, token: str | None) -> bytes:
    """Return at most `size` bytes of a file of a hub model, from offset `start`.

    Raises the errors of the hub's client, and ReadTimeout if the file does not arrive within `HUB_SECONDS`.
    """
    headers = {
        **build_hf_headers(token=token),
        "Range": f"bytes={start}-{start + size - 1}",
        "Accept-Encoding": "identity",  # a compressed body could be small on the way and large in memory
    }
    url, deadline = hub.hf_hub_url(reference, name, revision=revision), time.monotonic() + HUB_SECONDS
    with hub.get_session().stream("GET", url, headers=headers, timeout=HUB_SECONDS) as response:
        hub.hf_raise_for_status(response)
        if start and response.status_code != HTTPStatus.PARTIAL_CONTENT:
            raise ValueError(f"the hub must be able to send a part of {name}; it sent status {response.status_code}")
        content = bytearray()
        for block in response.iter_raw():
            content += block
            if len(content) >= size:
                break
            if time.monotonic() > deadline:
                raise ReadTimeout(f"{name} did not arrive within {HUB_SECONDS:.0f} s")
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
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise _unreachable(reference, error) from error


def _unreachable(reference: str, error: Exception) -> SourceError:
    return SourceError(UNREACHABLE, f"the hub did not answer for {reference}: {error}. Try again later.")
