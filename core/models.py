"""Models at the door: a job whose model cannot be loaded is refused before it exists. The rules are `seft.source`'s."""

from core.errors import Code, Flaw, ProblemError
from core.settings import Settings
from seft.errors import SourceError
from seft.source import Kind, ModelSource
from seft.source import find as find_source

WAYS_OUT = {
    Code.MODEL_NOT_FOUND: "Give a hub id, or a folder or GGUF file under one of the model roots.",
    Code.MODEL_REFUSED: "Give a decoder-only model with its tokenizer and safetensors weights.",
    Code.HUB_UNREACHABLE: "Send the same request again later, or name a model under one of the model roots.",
}


def find(settings: Settings, reference: str, revision: str | None) -> ModelSource:
    """The model; a ProblemError with the param `model` or `revision` when it is none that may be loaded here."""
    try:
        source = find_source(reference, roots=settings.model_roots, revision=revision)
    except SourceError as error:
        code = Code(error.code)
        flaw = Flaw("model", str(error), repr(reference), WAYS_OUT[code])
        raise ProblemError(code, str(error), (flaw,)) from error
    if revision is not None and source.kind is not Kind.HUB:
        flaw = Flaw("revision", "is for hub models", repr(revision), "Leave it out: a local model has no revisions.")
        raise ProblemError(Code.INVALID_REQUEST, f"{reference!r} is a local model and has no revisions.", (flaw,))
    return source
