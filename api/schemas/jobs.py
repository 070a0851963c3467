"""Responses about jobs."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field

from api.schemas.estimates import EstimateView
from api.schemas.shared import FILE_ID, JOB_ID, MODEL, TIME, Passthrough, RowView, example
from core.jobs import forecast
from core.specs import JobSpec
from core.states import Phase, Status
from core.stored_specs import with_defaults
from core.tables import Job


class ErrorView(BaseModel):
    """Why a job failed."""

    fault: Annotated[str, Passthrough(Literal["user_error", "system_error"])] = Field(
        description="Whether the request (`user_error`) or the service (`system_error`) caused the failure."
    )
    code: str
    message: str


class ReasonView(BaseModel):
    """Why a job does not run."""

    code: str
    message: str


class JobView(RowView):
    """A job as it appears in a list."""

    id: str
    status: Status
    reason: ReasonView | None = Field(
        description="Why a paused job does not run. When you get a single job, also why a queued job does not run."
    )
    pausing: bool = Field(description="True if a pause was requested and the worker is still saving the state.")
    stopping: bool = Field(description="True if a stop was requested: training ends early and the result is published.")
    phase: Annotated[str | None, Passthrough(Phase | None)] = Field(description="Phase of the running attempt.")
    progress: float = Field(description="Fraction of the whole job that is done, 0 to 1.")
    estimated_finish: datetime | None = Field(
        description="Time at which the running job will end, computed from its measured speed. `null` if the job does"
        " not run, if a pause was requested, or while nothing is known."
    )
    step: int = Field(description="Number of optimizer steps done, out of `spec.repair.steps`.")
    attempt: int = Field(description="Number of the newest attempt. 0 before the first one.")
    dtype: str | None = Field(
        description="Data type of the weights in the newest attempt. It shows what `auto` in `spec.dtype` became."
        " `null` before the first attempt."
    )
    scores: dict[str, float] = Field(
        description="Perplexities of the `dense`, `pruned` and `repaired` model, each as soon as it is measured. With"
        " the schedule `gradual` there is no `pruned` model. `dense_retained` and so on are perplexities on"
        " retained text. They show what the model has lost on other text."
    )
    measured: dict[str, Any] | None = Field(description="Sparsity, counted in the files of the checkpoint.")
    error: ErrorView | None
    spec: Annotated[dict[str, Any], Passthrough(JobSpec)] = Field(description="The request, with defaults filled in.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    updated_at: datetime

    @classmethod
    def of(cls, row: Job, **computed: Any) -> Self:
        """Return the view of a row. `computed` are the values of fields that are not columns of the row."""
        derived = {"spec": with_defaults(row.spec), "estimated_finish": forecast.finish(row)}
        return super().of(row, **derived | computed)


_JOB = {
    "id": JOB_ID,
    "status": "running",
    "reason": None,
    "pausing": False,
    "stopping": False,
    "phase": "training",
    "progress": 0.42,
    "estimated_finish": "2026-09-27T13:47:02Z",
    "step": 180,
    "attempt": 1,
    "dtype": "bfloat16",
    "scores": {"dense": 20.63, "pruned": 51.2},
    "measured": None,
    "error": None,
    "spec": JobSpec(model=MODEL, dataset=FILE_ID, sparsity=0.6).model_dump(mode="json"),
    "created_at": TIME,
    "started_at": TIME,
    "finished_at": None,
    "updated_at": TIME,
}


class JobDetail(JobView):
    """A single job, with its place in the queue."""

    model_config = example({**_JOB, "queue_position": None, "estimate": None})

    queue_position: int | None = Field(
        description="Expected place in the queue, from 1, if the job is queued. Tenants take turns. If three of"
        " your jobs are earlier, three jobs of each other tenant are counted too. 1000 means 1000 or more."
    )
    estimate: Annotated[dict[str, Any] | None, Passthrough(EstimateView | None)] = Field(
        description="Estimate made when the job was created. Only for jobs with `auto_start: false`."
    )


class JobPage(BaseModel):
    """Jobs, newest first. For the next page, send the last id as `after`."""

    model_config = example({"data": [_JOB], "has_more": False})

    data: list[JobView]
    has_more: bool
