"""What is answered about models."""

from typing import Literal

from pydantic import BaseModel, Field

from api.schemas import example

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
