"""What is answered about models, and about the hub token that opens private ones."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, SecretStr

from api.schemas.shared import TIME, example
from core.specs import Spec
from core.tables import HubToken

_MODEL = {
    "id": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "kind": "hub",
    "revision": "12fd25f77366fa6b3b4b768ec3050bf629380bac",
    "architecture": "LlamaForCausalLM",
    "licence": "apache-2.0",
    "context": 8192,
    "parameters": 134515008,
    "target_weights": 106168320,
    "fits_on": ["gpu-1:4242:9f86d081"],
}


class ModelView(BaseModel):
    """A model that a job may name."""

    model_config = example(_MODEL)

    id: str = Field(description="What a job names as its `model`.")
    kind: Literal["hub", "folder", "gguf", "result"] = Field(
        description="Where it lies; a `result` is what one of your jobs has published, under that job's id."
    )
    revision: str | None = Field(description="Commit of a hub model; of a result the sha256 of its manifest.")
    architecture: str
    licence: str | None
    context: int | None = Field(description="Tokens that it was made for.")
    parameters: int
    target_weights: int = Field(description="Weights of the linears that are made sparse.")
    fits_on: list[str] = Field(description="Names of workers that live and that a job of its defaults fits.")


class ModelPage(BaseModel):
    """Models: those of all tenants by name, then results, newest first. The next page is `after` the last one's id."""

    model_config = example({"data": [_MODEL], "has_more": False})

    data: list[ModelView]
    has_more: bool


def _sendable(token: SecretStr) -> SecretStr:
    """What a header can carry; spaces and line ends come of copying."""
    if not all("!" <= character <= "~" for character in token.get_secret_value()):
        raise ValueError("It must be of printable ASCII without spaces")
    return token


class HubTokenRequest(Spec):
    """A token of the model hub."""

    model_config = example({"token": "hf_example"})

    token: Annotated[SecretStr, AfterValidator(_sendable)] = Field(
        min_length=1, max_length=512, description="As the hub shows it in its settings; one that may read does."
    )


class HubTokenView(BaseModel):
    """Your tenant's token of the model hub, without the token."""

    model_config = example({"id": "hub_01jz5h4c8m2v9q7w3t6x0y1b2d", "name": "acme", "created_at": TIME})

    id: str
    name: str = Field(description="Whose it is, as the hub said when it was given.")
    created_at: datetime

    @classmethod
    def of(cls, row: HubToken) -> Self:
        """The view of a row."""
        return cls.model_validate({name: getattr(row, name) for name in cls.model_fields})
