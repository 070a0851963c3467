"""Models at the door: a job whose model cannot be loaded is refused before it exists. The rules are `seft.source`'s."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.anatomy import Anatomy, dissect
from core.errors import Code, Flaw, ProblemError
from core.settings import Settings
from seft.errors import SourceError
from seft.shapes import shapes
from seft.source import Kind, ModelSource, fetch, find, find_on_hub

HUB_CALLS = 8
"""So many requests at once may wait for the hub: one that does not answer must not take every thread of the server."""
COMMITS = 256
"""Models of the hub whose sizes are remembered; a commit never changes."""
WAYS_OUT = {
    Code.MODEL_NOT_FOUND: "Give a hub id, or a folder or GGUF file under one of the model roots.",
    Code.MODEL_REFUSED: "Give a decoder-only model with its tokenizer and safetensors weights.",
    Code.HUB_UNREACHABLE: "Send the same request again later, or name a model under one of the model roots.",
}


class Door:
    """What models may come in. Safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        self._roots = settings.model_roots
        self._hub_calls = threading.BoundedSemaphore(HUB_CALLS)
        self._commits: dict[tuple[str, str | None], Anatomy] = {}

    def find(self, reference: str, revision: str | None) -> ModelSource:
        """The model; a ProblemError with the param `model` or `revision` when it is none that may be loaded here.

        HUB_BUSY, at once, when too many others wait for the hub already.
        """
        with _telling(reference):
            source = find(reference, roots=self._roots, revision=revision, ask_hub=self._ask_hub)
        if revision is not None and source.kind is not Kind.HUB:
            way_out = "Leave it out: a local model has no revisions."
            flaw = Flaw("revision", "is for hub models", repr(revision), way_out)
            raise ProblemError(Code.INVALID_REQUEST, f"{reference!r} is a local model and has no revisions.", (flaw,))
        return source

    def anatomy(self, source: ModelSource) -> Anatomy:
        """The sizes of a model that was found; what a commit of the hub holds is asked once. Errors as above."""
        with _telling(source.reference):
            if source.kind is not Kind.HUB:
                return dissect(source, shapes(source))
            key = (source.reference, source.revision)
            if key not in self._commits:
                with self._calling(source.reference):
                    found = dissect(source, shapes(source))
                if len(self._commits) >= COMMITS:
                    self._commits.clear()
                self._commits[key] = found
            return self._commits[key]

    def tokenizer(self, reference: str, revision: str | None) -> tuple[ModelSource, Path]:
        """The model, and a folder or GGUF file that its tokenizer is in; errors are those of `find`."""
        source = self.find(reference, revision)
        with _telling(reference):
            return source, fetch(source, weights=False)

    def _ask_hub(self, reference: str, revision: str | None) -> ModelSource:
        with self._calling(reference):
            return find_on_hub(reference, revision)

    @contextmanager
    def _calling(self, reference: str) -> Iterator[None]:
        if not self._hub_calls.acquire(blocking=False):
            way_out = "Send the same request again in a few seconds."
            flaw = Flaw("model", f"at most {HUB_CALLS} requests wait for the hub at once", repr(reference), way_out)
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
