"""Models at the door: a job whose model cannot be loaded is refused before it exists. The rules are `seft.models.source`'s."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from botocore.exceptions import ClientError
from sqlalchemy.orm import Session, sessionmaker

from core.access.hub_tokens import HubTokens, account_name
from core.errors import Code, Flaw, ProblemError
from core.estimate.dimensions import Dimensions, read_dimensions
from core.infra.storage import Storage, missing
from core.models import results
from core.models.results import is_result
from core.settings import Settings
from core.tables import Checkpoint
from seft.errors import SourceError
from seft.models.shapes import Shapes, shapes
from seft.models.source import NOT_FOUND, Kind, ModelSource, fetch, fetch_into, find, find_cached, find_on_hub

HUB_CALLS = 8
"""So many requests at once may wait for the hub: one that does not answer must not take every thread of the server."""
COMMITS = 256
"""Models whose sizes are remembered, of the hub and results; neither ever changes."""
PRIVATE = "A private or gated model needs your tenant's hub token: PUT /hub-token."
WAYS_OUT = {
    Code.MODEL_NOT_FOUND: "Give a hub id, a folder or GGUF file under one of the model roots, or a job that succeeded. "
    + PRIVATE,
    Code.MODEL_REFUSED: f"Give a decoder-only model with its tokenizer and safetensors weights. {PRIVATE}",
    Code.HUB_UNREACHABLE: "Send the same request again later, or name a model under one of the model roots.",
}


class ModelResolver:
    """What models may come in. Safe to share between threads."""

    def __init__(
        self, settings: Settings, sessions: sessionmaker[Session], storage: Storage, tokens: HubTokens
    ) -> None:
        self._roots, self._sessions, self._storage, self._tokens = settings.model_roots, sessions, storage, tokens
        self._hub_calls = threading.BoundedSemaphore(HUB_CALLS)
        self._commits: dict[tuple[str, str | None], Dimensions] = {}

    def find(self, tenant: str, reference: str, revision: str | None, *, cached: bool = False) -> ModelSource:
        """The model; a ProblemError with the param `model` or `revision` when it is none that may be loaded here.

        HUB_BUSY, at once, when too many others wait for the hub already. Where `cached` is true, no hub is asked.
        """
        with _telling(reference):
            if is_result(reference):
                source = results.source(self._storage, self._result(tenant, reference))
            else:
                ask_hub = find_cached if cached else partial(self._ask_hub, tenant)
                source = find(reference, roots=self._roots, revision=revision, ask_hub=ask_hub)
        if revision not in {None, source.revision} and source.kind is not Kind.HUB:
            way_out = "Leave it out: only a model of the hub has revisions."
            flaw = Flaw("revision", "is for hub models", repr(revision), way_out)
            raise ProblemError(Code.INVALID_REQUEST, f"{reference!r} has no revision {revision!r}.", (flaw,))
        return source

    def anatomy(self, tenant: str, source: ModelSource) -> Dimensions:
        """The sizes of a model that was found; what a commit or a result holds is read once. Errors as above."""
        with _telling(source.reference):
            if source.revision is None:
                return read_dimensions(source, shapes(source))
            key = (source.reference, source.revision)
            if key not in self._commits:
                found = read_dimensions(source, self._shapes(tenant, source))
                if len(self._commits) >= COMMITS:
                    self._commits.clear()
                self._commits[key] = found
            return self._commits[key]

    @contextmanager
    def tokenizer(self, tenant: str, reference: str, revision: str | None) -> Iterator[tuple[ModelSource, Path]]:
        """The model, and a folder or GGUF file that its tokenizer is in; errors are those of `find`.

        Of a model that needs the tenant's token, nothing stays here.
        """
        source = self.find(tenant, reference, revision)
        with TemporaryDirectory() as private:
            with _telling(reference):
                if is_result(reference):
                    path = results.download_tokenizer(self._storage, self._result(tenant, reference))
                elif source.token is None:
                    path = fetch(source, weights=False)
                else:
                    path = Path(private)
                    fetch_into(path, source, weights=False)
            yield source, path

    def _shapes(self, tenant: str, source: ModelSource) -> Shapes:
        if is_result(source.reference):
            return results.shapes(self._storage, self._result(tenant, source.reference))
        with self._calling("model", repr(source.reference)):
            return shapes(source)

    def _result(self, tenant: str, reference: str) -> Checkpoint:
        with self._sessions.begin() as session:
            found = results.find(session, tenant, reference)
        if found is None:
            told = f"your job {reference} has published nothing that is still kept. GET /models lists what there is."
            raise SourceError(NOT_FOUND, told)
        return found

    def owner(self, token: str) -> str:
        """Whose token of the hub it is: `core.access.hub_tokens.account_name`; or HUB_BUSY."""
        with self._calling("token", "(not repeated)"):
            return account_name(token)

    def _ask_hub(self, tenant: str, reference: str, revision: str | None) -> ModelSource:
        with self._calling("model", repr(reference)):
            return find_on_hub(reference, revision, token=partial(self._tokens.of, tenant))

    @contextmanager
    def _calling(self, param: str, value: str) -> Iterator[None]:
        if not self._hub_calls.acquire(blocking=False):
            way_out = "Send the same request again in a few seconds."
            flaw = Flaw(param, f"at most {HUB_CALLS} requests wait for the hub at once", value, way_out)
            raise ProblemError(Code.HUB_BUSY, "Too many requests wait for the model hub. Try again soon.", (flaw,))
        try:
            yield
        finally:
            self._hub_calls.release()


@contextmanager
def _telling(reference: str) -> Iterator[None]:
    """What is wrong with the model in here is told to whoever named it."""
    try:
        yield
    except SourceError as error:
        code = Code(error.code)
        flaw = Flaw("model", str(error), repr(reference), WAYS_OUT[code])
        raise ProblemError(code, str(error), (flaw,)) from error
    except ClientError as error:
        if not missing(error):
            raise
        told = f"What {reference} has published is gone from the storage."
        flaw = Flaw("model", told, repr(reference), WAYS_OUT[Code.MODEL_NOT_FOUND])
        raise ProblemError(Code.MODEL_NOT_FOUND, told, (flaw,)) from error
