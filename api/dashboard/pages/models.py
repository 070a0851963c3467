"""The page of models: list the available ones, and look up any model by name, local or on the Hugging Face Hub."""

from collections.abc import Iterable

from fastapi import APIRouter, Request, Response

from api.dashboard import formatting
from api.dashboard.render import page
from api.dashboard.visitors import Signed
from api.deps import CurrentServices, Services
from api.errors import TABLE
from api.schemas.jobs import JobView
from api.usecases import models as usecases
from core.errors import ProblemError
from core.jobs import jobs
from core.models.results import is_result

LIMIT = 25
SUGGESTIONS = 50
"""Maximum number of models that the form suggests. The user can type any other name."""

router = APIRouter()


@router.get("/models")
def list_models(
    request: Request,
    services: CurrentServices,
    visitor: Signed,
    *,
    model: str = "",
    revision: str = "",
    after: str = "",
) -> Response:
    """Show the list of models. If `model` is given, also show the details of that model."""
    query = {"model": model.strip(), "revision": revision.strip()}
    found, flaws, problem, status = None, {}, "", 200
    if query["model"]:
        try:
            found = usecases.get(services, visitor.caller, query["model"], query["revision"] or None)
        except ProblemError as error:
            flaws = {flaw.param: flaw for flaw in error.flaws if flaw.param in query}
            problem, status = ("", 422) if flaws else (error.message, int(TABLE[error.code][0]))
    listed = usecases.page(services, visitor.caller, after=after or None, limit=LIMIT)
    shown = [each.id for each in (*listed.data, *([found] if found else []))]
    return page(
        request,
        visitor,
        "models.html",
        status=status,
        query=query,
        found=found,
        flaws=flaws,
        problem=problem,
        models=listed.data,
        skipped=listed.skipped,
        next=listed.next,
        after=after,
        titles=_titles(services, visitor.caller.tenant, shown),
    )


def suggested_models(services: Services, tenant: str) -> dict[str, str]:
    """Return the models that the form of a new job suggests, those of earlier jobs first.

    Maps the name of each model to a title. The title is the job's title if the model is the result of a job, else
    empty. A job that was deleted is not suggested.
    """
    with services.sessions.begin() as session:
        named = jobs.models(session, tenant)
    names = list(dict.fromkeys([*named, *services.catalogue.names(tenant, SUGGESTIONS)]))[:SUGGESTIONS]
    titles = _titles(services, tenant, names)
    return {name: titles.get(name, "") for name in names if name in titles or not is_result(name)}


def _titles(services: Services, tenant: str, models: Iterable[str]) -> dict[str, str]:
    """Return the titles of the jobs whose results are in `models`, by job id. A job that was deleted has none."""
    with services.sessions.begin() as session:
        rows = jobs.find(session, tenant, filter(is_result, models))
    return {row.id: formatting.job_title(JobView.of(row)) for row in rows}
