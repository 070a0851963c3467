"""Copy the files of a checkpoint from the object storage into a repository of the model hub, in one commit.

A file is sent in blocks while it is read from the storage, one file at a time. So a push needs no disk, and little
memory. `huggingface_hub` sends such a stream by the LFS protocol and not by Xet. Mirrors of the hub support LFS too.
A file that the hub already has is not sent again. After an interruption, the next try skips these files.
"""

import hashlib
import logging
from collections.abc import Callable
from http import HTTPStatus

import huggingface_hub as hub
import structlog
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from httpx2 import Client, HTTPError, Timeout
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, constants
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._http import default_client_factory
from huggingface_hub.utils.tqdm import disable_progress_bars
from sqlalchemy.exc import SQLAlchemyError

from core import __version__
from core.access.hub_tokens import HOW_TO_SET
from core.infra.storage import Storage, is_missing
from core.jobs.pushes import ClaimedPush
from core.tables import Json
from seft.models.model_files import CONFIG, INDEX, is_weights
from seft.storable import printable

TIMEOUT = Timeout(60.0, read=300.0)
"""Seconds without progress after which a request fails. Most requests of `huggingface_hub` set no limit themselves. The
answer to a large commit may take minutes.
"""
TEMPORARY = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.CONFLICT,
    HTTPStatus.PRECONDITION_FAILED,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
)
"""Statuses between 400 and 499 after which the same request may succeed later. 412: another commit came first."""
SMALL_BYTES = 16 << 20
"""Largest file whose content is compared with a Git object. The hub keeps larger files in LFS."""
MESSAGE_CHARACTERS = 500
DENIED_WAY_OUT = (
    f"Store a token with write access to the repository with {HOW_TO_SET}, and push again with POST /jobs/{{}}/push."
)
AGAIN = "Correct this, and push again with POST /jobs/{}/push."
BATCH_ERROR = "LFS batch API returned errors"
"""Beginning of the ValueError of `huggingface_hub` if the hub refuses a file. The reason of the hub follows."""

log = structlog.get_logger(__name__)


class PushError(Exception):
    """A try to push has failed. `retry` says whether a later try may succeed without a change by the tenant."""

    def __init__(self, code: str, message: str, *, retry: bool) -> None:
        super().__init__(message)
        self.code, self.message, self.retry = code, message, retry


def configure() -> None:
    """Configure `huggingface_hub` for a service: requests have timeouts, and only errors are printed.

    Its warnings contain signed links. One warning says for every file that it is not sent by Xet.
    """
    disable_progress_bars()
    for module in ("_commit_api", "utils._http"):
        logging.getLogger(f"huggingface_hub.{module}").setLevel(logging.ERROR)

    def make() -> Client:
        client = default_client_factory()
        client.timeout = TIMEOUT
        return client

    hub.set_client_factory(make)


def upload(storage: Storage, token: str, push: ClaimedPush, is_mine: Callable[[], bool]) -> str:
    """Copy the files of the checkpoint into the repository. Return the URL of the commit that contains them.

    The repository and the branch are created if they do not exist. If the branch already contains the files, for
    example because a worker died after its commit, no commit is made. Weights of another model, which a loader would
    mix with those of the checkpoint, are deleted in the same commit. All other files are kept.

    `is_mine` is called before each file and before the commit. If it returns False, no further file is sent, and
    nothing is committed. Nothing is committed either if another commit came first. Raises PushError, and the database
    errors of `is_mine`.
    """
    if push.files is None:
        message = f"The checkpoint of {push.job_id} was deleted before it was pushed. Create the job again."
        raise PushError("checkpoint_deleted", message, retry=False)
    try:
        return _upload(storage, hub.HfApi(token=token), push, push.files, is_mine)
    except (PushError, SQLAlchemyError):
        raise
    except Exception as error:
        raise _push_error(error, push, token) from error


def _upload(storage: Storage, api: hub.HfApi, push: ClaimedPush, files: list[Json], is_mine: Callable[[], bool]) -> str:
    name, branch = push.repository, push.revision
    api.create_repo(name, private=push.private, exist_ok=True)
    if branch != constants.DEFAULT_REVISION:
        api.create_branch(name, branch=branch, exist_ok=True)
    commit = api.model_info(name, revision=branch).sha
    entries = api.list_repo_tree(name, revision=commit)
    present = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    changes: list[CommitOperationAdd | CommitOperationDelete] = []
    for file in files:
        _require_mine(is_mine)
        if not _is_present(storage, push, file, present.get(file["name"])):
            addition = _addition(storage, push, file)
            # The .gitignore of the repository could exclude files of the model, so an empty one is given.
            api.preupload_lfs_files(name, [addition], revision=branch, gitignore_content="")
            changes.append(addition)
    changes += [CommitOperationDelete(path, is_folder=False) for path in _outdated(present, files)]
    if changes:
        _require_mine(is_mine)
        commit = api.create_commit(
            name,
            changes,
            commit_message=f"Push the result of {push.job_id}",
            commit_description=f"Pushed by SEFT {__version__}.",
            revision=branch,
            parent_commit=commit,
        ).oid
    return f"{api.endpoint}/{name}/commit/{commit}"


def _require_mine(is_mine: Callable[[], bool]) -> None:
    if not is_mine():
        raise PushError("interrupted", "The push was deleted, or another worker has taken it over.", retry=True)


def _is_present(storage: Storage, push: ClaimedPush, file: Json, entry: RepoFile | None) -> bool:
    """Return whether a file of the repository has the content of the checkpoint's file."""
    if entry is None or entry.size != file["size"]:
        return False
    if entry.lfs is not None:
        return bool(entry.lfs.sha256 == file["sha256"])
    if entry.size > SMALL_BYTES:
        return False
    content = storage.read(push.prefix + file["name"])
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == entry.blob_id  # noqa: S324 (Git's hash)


def _addition(storage: Storage, push: ClaimedPush, file: Json) -> CommitOperationAdd:
    """Return the change that adds a file. This reads the whole object once, to compute its SHA-256."""
    addition = CommitOperationAdd(file["name"], storage.open(push.prefix + file["name"]))
    if (actual := addition.upload_info.sha256.hex()) != file["sha256"]:
        message = (
            f"{file['name']} must have the sha256 {file['sha256']}; it has {actual}. It is damaged in the storage."
        )
        raise PushError("checkpoint_damaged", f"{message} Create the job again.", retry=False)
    return addition


def _outdated(present: dict[str, RepoFile], files: list[Json]) -> list[str]:
    """Return the names of weights in the repository that a loader would mix with those of a dense checkpoint."""
    names = {file["name"] for file in files}
    return [path for path in present if CONFIG in names and path not in names and (is_weights(path) or path == INDEX)]


def _push_error(error: Exception, push: ClaimedPush, token: str) -> PushError:
    """Convert the error of a library to a PushError that says what to do.

    The text contains neither the token, nor signed links, nor names of the service's machines.
    """
    to = f"to {push.repository}"
    sending = isinstance(error, RuntimeError) and error.__cause__  # `huggingface_hub` wraps errors of sending a file
    if isinstance(sending, Exception):
        error = sending
    if isinstance(error, OfflineModeIsEnabled):
        message = f"The service cannot push {to}, because HF_HUB_OFFLINE is set. Ask the operator."
        return PushError("hub_offline", message, retry=False)
    if isinstance(error, ClientError) and is_missing(error):
        message = f"A file of the checkpoint of {push.job_id} is no longer in the storage. Create the job again."
        return PushError("checkpoint_deleted", message, retry=False)
    if isinstance(error, BotoCoreError | Boto3Error | ClientError):
        log.warning("push.storage_failed", error=str(error))
        message = "The object storage did not answer, or answered with an error."
        return PushError("storage_unreachable", message, retry=True)
    if isinstance(error, ValueError) and isinstance(error.__cause__, BadRequestError):  # invalid YAML in the model card
        reason = _shown(error, token).rstrip(". ")
        message = f"The hub refused the push {to}: {reason}. {AGAIN.format(push.job_id)}"
        return PushError("hub_refused", message, retry=False)
    if isinstance(error, HfHubHTTPError) and not sending:  # a link to send a file answers 403 if it has expired
        return _hub_error(error, push, token)
    said = type(error).__name__
    if not isinstance(error, HTTPError):  # their texts have signed links
        log.warning("push.unexpected_error", error=f"{said}: {_shown(error, token)}")
    if isinstance(error, ValueError) and str(error).startswith(BATCH_ERROR):
        said = _shown(error, token)
    return PushError("hub_unreachable", f"The push {to} failed: {said}.", retry=True)


def _hub_error(error: HfHubHTTPError, push: ClaimedPush, token: str) -> PushError:
    status = error.response.status_code
    reason = _shown(error.server_message or "", token).rstrip(". ")
    said = f"It answered with status {status}{': ' if reason else ''}{reason}."
    if not HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR or status in TEMPORARY:
        message = f"The hub did not accept the push to {push.repository}. {said}"
        return PushError("hub_unreachable", message, retry=True)
    denied = status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)
    way_out = (DENIED_WAY_OUT if denied else AGAIN).format(push.job_id)
    return PushError("hub_refused", f"The hub refused the push to {push.repository}. {said} {way_out}", retry=False)


def _shown(text: object, token: str) -> str:
    return printable(str(text).replace(token, "…")[:MESSAGE_CHARACTERS])
