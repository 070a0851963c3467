"""Jobs, as the API returns them."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field

from api.schemas.estimates import EstimateView
from api.schemas.shared import FILE_ID, JOB_ID, MODEL, TIME, Passthrough, example
from core.specs import JobSpec, with_defaults
from core.states import Phase, Status
from core.tables import Job


class ErrorView(BaseModel):
    """Why a job failed."""

    fault: Annotated[str, Passthrough(Literal["user_error", "system_error"])] = Field(
        description="Whose fault it is: the request's or the service's."
    )
    code: str
    message: str


class ReasonView(BaseModel):
    """Why a job does not run."""

    code: str
    message: str


class JobView(BaseModel):
    """A job, as a list shows it."""

    id: str
    status: Status
    reason: ReasonView | None = Field(
        description="Why it does not run: while paused, and in the answer about one job while queued."
    )
    pausing: bool = Field(description="A pause was asked for; the worker is saving the state.")
    stopping: bool = Field(description="It was told to train no further; what there is gets published.")
    phase: Annotated[str | None, Passthrough(Phase | None)] = Field(description="What the running attempt is doing.")
    progress: float = Field(description="Share of the whole job that is done, 0 to 1.")
    step: int = Field(description="Optimizer steps done, of `spec.repair.steps`.")
    attempt: int = Field(description="Number of the newest attempt; 0 before the first one.")
    scores: dict[str, float] = Field(description="Perplexities `dense`, `pruned`, `repaired`, each once it is known.")
    measured: dict[str, Any] | None = Field(description="Sparsity counted from the written file.")
    error: ErrorView | None
    spec: Annotated[dict[str, Any], Passthrough(JobSpec)] = Field(description="The request with all defaults.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    updated_at: datetime

    @classmethod
    def of(cls, job: Job, **more: Any) -> Self:
        """The view of a row, and what the row does not know."""
        names = set(JobView.model_fields)
        return cls.model_validate(
            {name: getattr(job, name) for name in names} | {"spec": with_defaults(job.spec)} | more
        )


_JOB = {
    "id": JOB_ID,
    "status": "running",
    "reason": None,
    "pausing": False,
    "stopping": False,
    "phase": "training",
    "progress": 0.42,
    "step": 180,
    "attempt": 1,
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
    """A job, as its own page shows it."""

    model_config = example({**_JOB, "queue_position": None, "estimate": None})

    queue_position: int | None = Field(description="Place in the queue from 1 while queued; 1000 is that or more.")
    estimate: Annotated[dict[str, Any] | None, Passthrough(EstimateView | None)] = Field(
        description="Of a job with `auto_start: false`: what it was expected to take when it was made."
    )


class JobPage(BaseModel):
    """Jobs, newest first. The next page is `after` the last one's id."""

    model_config = example({"data": [_JOB], "has_more": False})

    data: list[JobView]
    has_more: bool
