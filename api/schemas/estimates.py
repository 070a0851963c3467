"""What is asked and answered about what a job would take."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from core import ids
from core.specs import JobSpec
from core.states import Phase


def _describe(schema: dict[str, Any]) -> None:
    schema["required"].remove("sparsity")
    schema["example"] = {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "sparsity": 0.6}


class EstimateSpec(JobSpec):
    """A repair job that is only thought of. It may do without its dataset."""

    model_config = ConfigDict(json_schema_extra=_describe)

    dataset: str | None = Field(  # type: ignore[assignment]
        default=None, pattern=ids.pattern("file"), description="Changes nothing of the estimate."
    )


class StageView(BaseModel):
    """The fullest moment of a phase, a tenth more or less."""

    phase: Phase
    device_bytes: int = Field(description="Tensors on the device.")
    host_bytes: int = Field(description="All processes of the job on the host of a device that is not the processor.")
    together_bytes: int = Field(description="All processes of the job where the processor is the device.")


class TokensView(BaseModel):
    """How many tokens are read, at most, counted as often as they are."""

    calibration: int
    training: int
    evaluation: int


class FitView(BaseModel):
    """A worker that lives, and whether the job fits it."""

    name: str
    device: str
    device_name: str = Field(description="Equal work takes about as long on equal devices.")
    fits: bool
    phase: Phase = Field(description="The phase that decides it.")
    needed_bytes: int
    memory_bytes: int = Field(description="Of its device; a tenth is to be left.")
    change: dict[str, Any] | None = Field(
        description="Fields of the job, at any depth (RFC 7396), with which it fits; `null` where no change would help."
    )
    seconds: float | None = Field(
        description="From the start to the end, as jobs like it went there; `null` where there were none."
    )


class EstimateView(BaseModel):
    """What a job would take."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "architecture": "LlamaForCausalLM",
                "parameters": 134515008,
                "target_weights": 106168320,
                "steps": 500,
                "tokens": {"calibration": 262144, "training": 8192000, "evaluation": 61440},
                "memory": [
                    {
                        "phase": "training",
                        "device_bytes": 1530000000,
                        "host_bytes": 350000000,
                        "together_bytes": 1880000000,
                    }
                ],
                "checkpoint_bytes": 269030016,
                "fits": True,
                "workers": [
                    {
                        "name": "gpu-1:4242:9f86d081",
                        "device": "cuda",
                        "device_name": "NVIDIA H100 80GB HBM3",
                        "fits": True,
                        "phase": "pruning",
                        "needed_bytes": 2400000000,
                        "memory_bytes": 85899345920,
                        "change": {},
                        "seconds": 512.0,
                    }
                ],
            }
        }
    )

    architecture: str
    parameters: int
    target_weights: int = Field(description="Weights of the linears that are made sparse.")
    steps: int = Field(description="Optimizer steps.")
    tokens: TokensView
    memory: list[StageView] = Field(description="Of each phase, in their order.")
    checkpoint_bytes: int = Field(description="Of the weights that are handed over.")
    fits: bool | None = Field(description="Whether it fits a worker that lives; `null` where none does.")
    workers: list[FitView]
