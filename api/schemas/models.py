"""Requests and responses about models, and about the hub token for private ones."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, SecretStr

from api.schemas.shared import TIME, RowView, example
from core.access.keys import KEY_PREFIX
from core.models.catalogue import CatalogueEntry
from core.models.results import is_result
from core.request_fields import Spec

_MODEL = {
    "id": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "kind": "hub",
    "revision": "12fd25f77366fa6b3b4b768ec3050bf629380bac",
    "architecture": "llama",
    "licence": "apache-2.0",
    "context": 8192,
    "parameters": 134515008,
    "target_weights": 106168320,
    "fits_on": ["gpu-1:4242:9f86d081"],
}


class ModelView(BaseModel):
    """A model that a job can use."""

    model_config = example(_MODEL)

    id: str = Field(description="Value for the field `model` of a job.")
    kind: Literal["hub", "folder", "gguf", "result"] = Field(
        description="Where the model is stored. A `result` is the checkpoint of one of your jobs and has the job's id."
    )
    revision: str | None = Field(description="Commit of a hub model, or SHA-256 of a result's manifest.")
    architecture: str = Field(description="Type of the model, such as `llama`.")
    licence: str | None
    context: int | None = Field(description="Context length in tokens.")
    parameters: int
    target_weights: int = Field(description="Number of weights in the linear layers that are pruned.")
    fits_on: list[str] = Field(
        description="Names of live workers that have enough memory for a job with default settings."
    )

    @classmethod
    def of(cls, entry: CatalogueEntry) -> Self:
        """Return the view of an entry of the catalogue."""
        return cls.model_validate(
            {
                "id": entry.source.reference,
                "kind": "result" if is_result(entry.source.reference) else entry.source.kind,
                "revision": entry.source.revision,
                "architecture": entry.dimensions.architecture,
                "licence": entry.source.licence,
                "context": entry.dimensions.context,
                "parameters": entry.dimensions.parameters,
                "target_weights": entry.dimensions.targets,
                "fits_on": entry.fits_on,
            }
        )


class SkippedModel(BaseModel):
    """A model that exists but cannot be used."""

    id: str = Field(description="Name of the model. Characters that are not valid text are replaced.")
    reason: str = Field(description="Why the model cannot be used, and the way out.")


class ModelPage(BaseModel):
    """Models: shared ones by name, then your results, newest first. For the next page, send `next` as `after`."""

    model_config = example({"data": [_MODEL], "has_more": False, "next": None, "skipped": []})

    data: list[ModelView]
    has_more: bool
    next: str | None = Field(
        description="Name of the last model of this page, in `data` or skipped. Null if no more models follow."
    )
    skipped: list[SkippedModel] = Field(
        description="Models that would be in this page if they could be used, such as one with a damaged file."
    )


def _sendable(token: SecretStr) -> SecretStr:
    """Reject a token that an HTTP header cannot carry, such as one that was copied with a line break."""
    if not all("!" <= character <= "~" for character in token.get_secret_value()):
        raise ValueError("must have only printable ASCII characters, without spaces and line breaks")
    if token.get_secret_value().startswith(KEY_PREFIX):
        raise ValueError("must be a token of the hub, and not an API key of this service")
    return token


class HubTokenRequest(Spec):
    """A token of the model hub to store."""

    model_config = example({"token": "hf_example"})

    token: Annotated[SecretStr, AfterValidator(_sendable)] = Field(
        min_length=1,
        max_length=512,
        description="Access token, from your account's settings on the hub. Read access is enough, except for pushes.",
    )


class HubTokenView(RowView):
    """Your tenant's token of the model hub, without the token."""

    model_config = example({"id": "hub_01jz5h4c8m2v9q7w3t6x0y1b2d", "name": "acme", "created_at": TIME})

    id: str
    name: str = Field(description="Name of the hub account that owns the token, read when the token was stored.")
    created_at: datetime
