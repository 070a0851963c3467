"""The request and the response of an estimate."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from core import ids
from core.estimate.speed import Source
from core.specs import JobSpec
from core.states import Phase


def _describe(schema: dict[str, Any]) -> None:
    schema["required"].remove("sparsity")
    schema["example"] = {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "sparsity": 0.6}


class EstimateSpec(JobSpec):
    """A job to estimate. It has the fields of a job, but `dataset` and `repair.retain_dataset` are optional."""

    model_config = ConfigDict(json_schema_extra=_describe)

    dataset: str | None = Field(  # type: ignore[assignment]
        default=None, pattern=ids.pattern("file"), description="Optional, and has no effect on the estimate."
    )

    def _require_retained_dataset(self) -> None:
        """Require nothing, because the estimate does not depend on the datasets."""


class PhaseView(BaseModel):
    """Peak memory of one phase of a job.

    For small models on a CPU, the estimate was right to within 14 % in training and 13 % in pruning, and up to 40 % too
    low in the evaluation.
    """

    phase: Phase
    device_bytes: int = Field(description="Bytes of tensors on the device.")
    host_bytes: int = Field(description="Bytes of host memory for all processes of the job, if the device is a GPU.")
    together_bytes: int = Field(description="Bytes of memory for all processes of the job, if the device is the CPU.")


class TokensView(BaseModel):
    """Maximum number of tokens that each phase processes. A token that is processed twice counts twice."""

    calibration: int
    training: int
    evaluation: int


class FitView(BaseModel):
    """A live worker, and whether the job fits into its memory."""

    name: str
    device: str
    device_name: str = Field(description="Model of the device. Equal devices take about the same time for a job.")
    devices: int = Field(description="Number of devices of the worker.")
    dtype: str = Field(description="Data type of the weights on this worker. It tells what `auto` means there.")
    fits: bool = Field(description="True if the worker has enough devices and enough memory for the job.")
    phase: Phase = Field(description="Phase that needs the most memory. It decides whether the job fits.")
    needed_bytes: int = Field(description="Bytes of memory that this phase needs.")
    memory_bytes: int = Field(description="Bytes of memory of the device. A tenth of it must stay free.")
    change: dict[str, Any] | None = Field(
        description="Changes to the job, at any depth (RFC 7396), that make it fit. `null` if no change helps."
    )
    seconds: float | None = Field(
        description="Seconds from the claim of the job to its end on such a device. `null` if the time is unknown."
    )
    seconds_from: Source | None = Field(
        description="What `seconds` is based on: recent jobs on such devices (`earlier_jobs`), or also a short"
        " measurement of the device (`calibration`), which can be wrong by a factor of two or more."
    )


class EstimateView(BaseModel):
    """The memory, time and storage that a job would need."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "architecture": "llama",
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
                "disk_bytes": 807090048,
                "fits": True,
                "workers": [
                    {
                        "name": "gpu-1:4242:9f86d081",
                        "device": "cuda",
                        "device_name": "NVIDIA H100 80GB HBM3",
                        "devices": 1,
                        "dtype": "bfloat16",
                        "fits": True,
                        "phase": "pruning",
                        "needed_bytes": 2400000000,
                        "memory_bytes": 85899345920,
                        "change": {},
                        "seconds": 512.0,
                        "seconds_from": "earlier_jobs",
                    }
                ],
            }
        }
    )

    architecture: str = Field(description="Type of the model, such as `llama`.")
    parameters: int
    target_weights: int = Field(description="Number of weights in the linear layers that are pruned.")
    steps: int = Field(description="Number of optimizer steps.")
    tokens: TokensView
    memory: list[PhaseView] = Field(
        description="Peak memory of each phase, in the order of the phases. With the dtype `auto`, these are the values"
        " for `float32`; `workers` has the values for the dtype of each worker."
    )
    checkpoint_bytes: int = Field(
        description="Bytes of the weight files in the published checkpoint, in all its formats."
    )
    disk_bytes: int = Field(
        description="Bytes of the worker's disk that the job needs: a saved state with the retained text, and the dense"
        " model, even if it is not published. Files of other formats are not on the disk."
    )
    fits: bool | None = Field(description="True if the job fits a live worker. `null` if there is no live worker.")
    workers: list[FitView]
