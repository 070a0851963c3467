"""Requests and responses about pushes of a job's result into repositories of the model hub."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field

from api.schemas.shared import JOB_ID, TIME, Passthrough, RowView, example
from core.spec_parts import PushSpec, Repository
from core.states import PushState
from core.tables import Push

PUSH_ID = "push_01jz5h4c8m2v9q7w3t6x0y1b2d"


class PushRequest(PushSpec):
    """A repository of the model hub into which the result of a job is pushed."""

    model_config = example({"repository": "acme/model-sparse"})

    repository: Repository = Field(
        description="Repository of the model hub (`owner/name`). It is created if it does not exist."
    )


class PushErrorView(BaseModel):
    """Why a try to push has failed."""

    code: str
    message: str


_PUSH = {
    "id": PUSH_ID,
    "job_id": JOB_ID,
    "repository": "acme/model-sparse",
    "revision": "main",
    "private": True,
    "status": "pushed",
    "commit_url": "https://huggingface.co/acme/model-sparse/commit/0123456789abcdef0123456789abcdef01234567",
    "tries": 1,
    "next_try_at": None,
    "error": None,
    "requested_at": TIME,
    "finished_at": TIME,
}


class PushView(RowView):
    """A push of the result of a job into a branch of a repository."""

    model_config = example(_PUSH)

    id: str
    job_id: str
    repository: str
    revision: str
    private: bool
    status: Annotated[str, Passthrough(PushState)] = Field(
        description="`pending`: it waits for a worker, or for its next try. `running`: files are uploaded. Then"
        " `pushed` or `failed`."
    )
    commit_url: str | None = Field(description="Address of the commit that has the files, if the status is `pushed`.")
    tries: int = Field(description="Number of tries, including one that is running.")
    next_try_at: datetime | None = Field(description="Earliest time of the next try, if the status is `pending`.")
    error: PushErrorView | None = Field(description="Error of the last try that failed, with the way out.")
    requested_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, row: Push, **computed: Any) -> Self:
        """Return the view of a row."""
        next_try_at = row.due_at if row.state == PushState.PENDING else None
        return super().of(row, status=row.state, next_try_at=next_try_at, **computed)


class PushList(BaseModel):
    """All pushes of a job, the newest request first."""

    model_config = example({"data": [_PUSH]})

    data: list[PushView]
