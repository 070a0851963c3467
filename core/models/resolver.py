"""Find the model that a job names. A job whose model cannot be loaded is rejected before it is created.

`seft.models.source` defines which models can be loaded. This module adds results of earlier jobs, and hub tokens.
"""

import difflib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from math import inf
from pathlib import Path

import structlog
from botocore.exceptions import ClientError
from huggingface_hub import constants
from sqlalchemy.orm import Session, sessionmaker

from core.access.hub_tokens import HOW_TO_SET, HubTokens, account, write_flaw
from core.errors import Code, Flaw, ProblemError
from core.infra import temporary
from core.infra.storage import STORAGE_ERRORS, Storage, is_missing
from core.models import hub_cache, results
from core.models.results import is_result
from core.settings import Settings
from core.tables import Checkpoint
from seft.errors import DISK_FULL, SourceError
from seft.models.dimensions import Dimensions, read_dimensions
from seft.models.hub_files import NOT_FOUND
from seft.models.model_files import require_size
from seft.models.shapes import Shapes, shapes
from seft.models.source import (
    Kind,
    ModelSource,
    cached_models,
    fetch,
    fetch_into,
    find,
    find_cached,
    find_on_hub,
    names_under,
)
from seft.storable import printable

HUB_CALLS, TENANT_HUB_CALLS = 8, 2
"""Maximum number of requests to the hub at the same time, for all tenants and for one.

A hub that does not answer must not block all threads, and one tenant must not keep the others from the hub.
"""
MAX_TOKENIZER_BYTES = 128 << 20
"""Largest total size of the files without weights that a preview downloads."""
CACHE_SIZE = 256
"""Maximum number of models whose dimensions are cached.

They are cached by the version of the model's files (`_version`).
"""
SETTLED_SECONDS = 60
"""Minimum age of a model's files for its dimensions to be cached.

Younger files may have changed after the model was found and before their version was read.
"""
Version = str | tuple[tuple[str, int, int, int], ...]
MIN_PREFIX = 4
"""Minimum length of a text, in characters, for which a model whose name begins with the text is suggested."""
RETRY_SECONDS = 60
"""Seconds after which a client may repeat a request that failed because of the disk of the service."""
MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""Errors of code that reads a malformed file. They are logged, because they can also come from a bug of the service."""
VANISHED = (FileNotFoundError, NotADirectoryError, PermissionError)
"""Errors if the files of a model were deleted while they were read, or if this process has no right to read them."""
PRIVATE = f"For a private or gated model, set your tenant's hub token with {HOW_TO_SET}."
LISTED = "that GET /models (`seft models`) lists"
WAYS_OUT = {
    Code.MODEL_NOT_FOUND: f"Give the id of a model {LISTED}, or the id of another model of the hub. {PRIVATE}",
    Code.MODEL_REFUSED: f"Give a decoder-only model with its tokenizer and safetensors weights. {PRIVATE}",
    Code.HUB_UNREACHABLE: "Send the same request again later, or give the id of a local model or of a job's result"
    f" {LISTED}. They need no hub.",
}

log = structlog.get_logger(__name__)


class ModelResolver:
    """Finds and checks models. Safe to share between threads."""

    def __init__(
        self, settings: Settings, sessions: sessionmaker[Session], storage: Storage, tokens: HubTokens
    ) -> None:
        self._roots, self._sessions, self._storage, self._tokens = settings.model_roots, sessions, storage, tokens
        self._cache_bytes = settings.hub_cache_bytes
        self._hub_calls, self._hub_lock = Counter[str](), threading.Lock()
        self._cache: dict[tuple[str, Version], Dimensions] = {}

    def find(self, tenant: str, reference: str, revision: str | None, *, cached: bool = False) -> ModelSource:
        """Find the model with this name. If `cached` is true, look only in the hub cache and do not ask the hub.

        Raises ProblemError for the parameter `model` or `revision` if the model does not exist or cannot be used.
        Raises HUB_BUSY immediately if too many requests already wait for the hub.
        """
        # With `cached`, no similar name is suggested. The list of models uses it, and listing all names is slow.
        with _source_errors(reference, tuple if cached else self.shared_names):
            if reference != printable(reference):
                message = f"the name of a model must be valid text without NUL; {reference!r} is not. Rename it."
                raise SourceError(NOT_FOUND, message)
            if is_result(reference):
                source = results.source(self._storage, self._result(tenant, reference))
            else:
                ask_hub = find_cached if cached else partial(self._ask_hub, tenant)
                source = find(reference, roots=self._roots, revision=revision, ask_hub=ask_hub)
        if revision not in {None, source.revision} and source.kind is not Kind.HUB:
            way_out = "Remove `revision`, or name a hub model."
            flaw = Flaw("revision", "must not be set for a model that is not on the hub", repr(revision), way_out)
            raise ProblemError(
                Code.INVALID_REQUEST,
                f"The `revision` {revision!r} must not be set: {reference!r} is not a hub model.",
                (flaw,),
            )
        return source

    def shared_names(self) -> set[str]:
        """Return the names of the models of all tenants: local models, and models in the hub cache."""
        return {*cached_models(), *(name for root in self._roots for name in names_under(root))}

    def dimensions(self, tenant: str, source: ModelSource) -> Dimensions:
        """Return the dimensions of a model. Raises the errors of `find`.

        They are cached, because reading the headers of a model with many experts takes a tenth of a second.
        """
        with _source_errors(source.reference):
            version = _version(source)
            if version is not None and (cached := self._cache.get((source.reference, version))):
                return cached
            dimensions = read_dimensions(source, self._shapes(tenant, source))
            if version is not None:
                if len(self._cache) >= CACHE_SIZE:
                    self._cache.clear()
                self._cache[source.reference, version] = dimensions
            return dimensions

    @contextmanager
    def tokenizer(self, tenant: str, reference: str, revision: str | None) -> Iterator[tuple[ModelSource, Path]]:
        """Yield the model, and the path of the folder or GGUF file that contains its tokenizer.

        Raises the errors of `find`. Files that only this tenant may read are deleted after the `with` block.
        """
        source = self.find(tenant, reference, revision)
        with ExitStack() as stack:
            with _source_errors(reference):
                if is_result(reference):
                    path = stack.enter_context(temporary.folder())
                    results.download_tokenizer(
                        self._storage, self._result(tenant, reference), path, MAX_TOKENIZER_BYTES
                    )
                elif source.path is not None:
                    path = source.path
                else:
                    require_size(reference, source.bytes(weights=False), MAX_TOKENIZER_BYTES)
                    with self._hub_call(tenant, "model", repr(reference)):
                        if source.token is None:
                            stack.enter_context(hub_cache.using(source, self._cache_bytes, weights=False))
                            path = fetch(source, weights=False)
                        else:
                            path = stack.enter_context(temporary.folder())
                            fetch_into(path, source, weights=False)
            yield source, path

    def _shapes(self, tenant: str, source: ModelSource) -> Shapes:
        if is_result(source.reference):
            return results.shapes(self._storage, self._result(tenant, source.reference))
        if source.kind is not Kind.HUB:
            return shapes(source)
        with self._hub_call(tenant, "model", repr(source.reference)):
            return shapes(source)

    def _result(self, tenant: str, reference: str) -> Checkpoint:
        with self._sessions.begin() as session:
            checkpoint = results.find(session, tenant, reference)
        if checkpoint is None:
            message = (
                f"your job {reference} has no stored checkpoint in the format dense. List your models with GET /models."
            )
            raise SourceError(NOT_FOUND, message)
        return checkpoint

    def token_owner(self, tenant: str, token: str) -> str:
        """Return the name of the hub account that owns a token.

        Raises the errors of `account`, and HUB_BUSY if too many requests already wait for the hub.
        """
        with self._hub_call(tenant, "token", "(not shown)"):
            name: str = account(token)["name"]
        return name

    def require_writable(self, tenant: str, repository: str, param: str) -> None:
        """Raise INVALID_REQUEST for the parameter `param` if a push to the repository must fail.

        A push must fail if the hub must not be used, if the tenant has no token, if the hub rejects the token, or if it
        may not write. If the hub does not answer, nothing is raised, because the push is tried for days.
        """
        if flaw := self._push_flaw(tenant, repository, param):
            rule, way_out = flaw
            message = f"{param} {rule}. {way_out}"
            raise ProblemError(Code.INVALID_REQUEST, message, (Flaw(param, rule, repr(repository), way_out),))

    def _push_flaw(self, tenant: str, repository: str, param: str) -> tuple[str, str] | None:
        """Return why a push must fail, as (rule, way out), or None."""
        if constants.is_offline_mode():
            return "must be left out, because the service does not use the hub (HF_HUB_OFFLINE)", "Leave it out."
        token = self._tokens.get(tenant)
        if token is None:
            return (
                "can be pushed to only with a hub token of your tenant",
                f"Set a token with write access with {HOW_TO_SET}.",
            )
        try:
            with self._hub_call(tenant, param, repr(repository)):
                return write_flaw(account(token), repository)
        except ProblemError as problem:
            if problem.code in (Code.HUB_UNREACHABLE, Code.HUB_BUSY):
                return None
            return (
                "can be pushed to only with a hub token that the hub accepts",
                f"Store one with write access with {HOW_TO_SET}.",
            )

    def _ask_hub(self, tenant: str, reference: str, revision: str | None) -> ModelSource:
        with self._hub_call(tenant, "model", repr(reference)):
            return find_on_hub(reference, revision, token=partial(self._tokens.get, tenant))

    @contextmanager
    def _hub_call(self, tenant: str, param: str, value: str) -> Iterator[None]:
        """Count the `with` block as one request of the tenant to the hub.

        Raises HUB_BUSY if there are already `HUB_CALLS` requests, or `TENANT_HUB_CALLS` of this tenant.
        """
        with self._hub_lock:
            own, all_ = self._hub_calls[tenant], self._hub_calls.total()
            if own >= TENANT_HUB_CALLS or all_ >= HUB_CALLS:
                rule = f"At most {HUB_CALLS} requests, {TENANT_HUB_CALLS} of one tenant, may wait for the hub at once."
                flaw = Flaw(param, rule, value, "Send the same request again in a few seconds.")
                raise ProblemError(
                    Code.HUB_BUSY, "Too many requests are waiting for the model hub. Try again soon.", (flaw,)
                )
            self._hub_calls[tenant] += 1
        try:
            yield
        finally:
            with self._hub_lock:
                self._hub_calls[tenant] -= 1
                self._hub_calls = +self._hub_calls


def _version(source: ModelSource) -> Version | None:
    """Return a value that changes if the files of a model change. None if they changed less than `SETTLED_SECONDS` ago.

    For a hub model it is the commit, and for a result of a job the hash of the manifest. For a local model it is the
    name, the size, the time of the last change and the number (inode) of each file.
    """
    if source.revision is not None:
        return source.revision
    assert source.path is not None
    files = [*filter(Path.is_file, source.path.iterdir())] if source.path.is_dir() else [source.path]
    states = [(file.name, file.stat()) for file in files]
    if max((state.st_mtime for _, state in states), default=inf) > time.time() - SETTLED_SECONDS:
        return None
    return tuple(sorted((name, state.st_size, state.st_mtime_ns, state.st_ino) for name, state in states))


@contextmanager
def _source_errors(reference: str, names: Callable[[], Iterable[str]] = tuple) -> Iterator[None]:
    """While the `with` block runs, turn errors of a model into a ProblemError for the parameter `model`.

    If the model does not exist, the error suggests the most similar one of `names`, which every tenant may see.
    """
    try:
        yield
    except SourceError as error:
        code = Code(error.code)
        meant = _did_you_mean(reference, names()) if code in (Code.MODEL_NOT_FOUND, Code.HUB_UNREACHABLE) else ""
        flaw = Flaw("model", str(error), repr(reference), meant + WAYS_OUT[code])
        raise ProblemError(code, str(error), (flaw,)) from error
    except ClientError as error:
        if not is_missing(error):
            raise
        message = f"The checkpoint of {reference} is no longer in the storage. Use the checkpoint of another job."
        flaw = Flaw("model", message, repr(reference), WAYS_OUT[Code.MODEL_NOT_FOUND])
        raise ProblemError(Code.MODEL_NOT_FOUND, message, (flaw,)) from error
    except STORAGE_ERRORS:
        raise  # some of them are OSErrors
    except OSError as error:
        if isinstance(error, VANISHED):
            message = f"The files of {reference!r} were deleted or cannot be read. Check the name and the permissions."
            flaw = Flaw("model", message, repr(reference), WAYS_OUT[Code.MODEL_NOT_FOUND])
            raise ProblemError(Code.MODEL_NOT_FOUND, message, (flaw,)) from error
        log.exception("model.unreadable", model=reference)
        what = "has no space for" if error.errno in DISK_FULL else "cannot read"
        message = f"The disk of the service {what} the files of {reference!r}. Try again later."
        raise ProblemError(Code.UNAVAILABLE, message, retry_after=RETRY_SECONDS) from error
    except MALFORMED as error:
        log.exception("model.malformed", model=reference)
        message = f"The files of {reference!r} are malformed: {type(error).__name__}. Save the model again."
        flaw = Flaw("model", message, repr(reference), WAYS_OUT[Code.MODEL_REFUSED])
        raise ProblemError(Code.MODEL_REFUSED, message, (flaw,)) from error


def _did_you_mean(reference: str, names: Iterable[str]) -> str:
    """Return a question that names the most similar model, or an empty text. Owners and folders are not compared.

    A name that begins with the reference is preferred. For example, the name of a GGUF file ends with its quantisation,
    which the reference may lack.
    """
    known = {_last_part(name): name for name in sorted(names) if name == printable(name) != reference}
    unknown = _last_part(reference)
    longer = [part for part in known if len(unknown) >= MIN_PREFIX and part.startswith(unknown)]
    similar = longer or difflib.get_close_matches(unknown, known, n=1)
    return f"Did you mean {known[similar[0]]!r}? " if similar else ""


def _last_part(name: str) -> str:
    return name.rpartition("/")[2].casefold()
