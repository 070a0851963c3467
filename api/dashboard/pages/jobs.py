"""The list of jobs, with filters, sorting and paging. Jobs can be selected here for a comparison."""

from datetime import UTC, date, datetime, time, timedelta
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ValidationError, field_validator

from api.dashboard.render import go, page
from api.dashboard.visitors import Signed
from api.deps import CurrentServices
from api.schemas.jobs import JobView
from core import ids
from core.jobs import jobs
from core.jobs.jobs import Order
from core.models.results import is_result
from core.states import Status

LIMIT = 25

router = APIRouter()


class Filters(BaseModel):
    """The filters of the list. Invalid values are ignored and not shown."""

    status: Status | None = None
    q: str = ""
    since: date | None = None
    until: date | None = None
    order: Order | None = None
    after: str | None = None

    @field_validator("status", "since", "until", "order", "after", mode="before")
    @classmethod
    def _empty_to_none(cls, value: object) -> object:
        return value or None

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata pair to filter by. Empty unless the search text has the form `name=value`."""
        name, equals, value = self.q.strip().partition("=")
        return {name: value} if equals and name else {}

    @property
    def model(self) -> str | None:
        """The model to filter by: the search text. None if the text has the form `name=value`."""
        text = self.q.strip().replace("\0", "")
        return text if text and not self.metadata else None

    def query(self, **changes: object) -> str:
        """Return the filters as a URL query, with `changes` applied."""
        values = {**self.model_dump(mode="json"), **changes}
        return urlencode({name: value for name, value in values.items() if value})


def _filters(request: Request) -> Filters:
    params = {name: value for name, value in request.query_params.items() if name in Filters.model_fields}
    try:
        return Filters.model_validate(params)
    except ValidationError as error:
        invalid = {entry["loc"][0] for entry in error.errors()}
        return Filters.model_validate({name: value for name, value in params.items() if name not in invalid})


@router.get("/jobs")
def list_jobs(request: Request, services: CurrentServices, visitor: Signed) -> Response:
    """Show the list of jobs."""
    filters = _filters(request)
    if ids.is_id("job", filters.q.strip()):
        return go(f"/jobs/{filters.q.strip()}")
    after = filters.after if filters.after and ids.is_id("job", filters.after) else None
    with services.sessions.begin() as session:
        rows, more = jobs.page(
            session,
            visitor.caller.tenant,
            status=filters.status,
            model=filters.model,
            metadata=filters.metadata.items(),
            since=datetime.combine(filters.since, time(), UTC) if filters.since else None,
            until=_end(filters.until),
            order=filters.order or Order.NEWEST,
            after=after,
            limit=LIMIT,
        )
        # The id of a job does not filter: it leads to the page of the job.
        models = [name for name in jobs.models(session, visitor.caller.tenant) if not is_result(name)]
    views = [JobView.of(row) for row in rows]
    return page(request, visitor, "jobs.html", jobs=views, more=more, filters=filters, models=models, Order=Order)


def _end(day: date | None) -> datetime | None:
    """Return the end of a day, or None for the last day that Python knows."""
    return datetime.combine(day + timedelta(days=1), time(), UTC) if day and day < date.max else None
