"""Models: what can be repaired here, a page at a time; and one looked up, also of the hub where it is not listed."""

from collections.abc import Iterable

from fastapi import APIRouter, Request, Response

from api.dashboard import words
from api.dashboard.render import page
from api.dashboard.visitors import Signed
from api.deps import CurrentServices, Services
from api.schemas.jobs import JobView
from api.usecases import models as usecases
from core.errors import ProblemError
from core.jobs import jobs
from core.models.results import is_result

LIMIT = 25
OFFERED = 50
"""Models that a field suggests; any other one can be typed."""

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
    """The page. `model` and `revision` are what is looked up."""
    asked = {"model": model.strip(), "revision": revision.strip()}
    found, wrong = None, {}
    if asked["model"]:
        try:
            found = usecases.get(services, visitor.caller, asked["model"], asked["revision"] or None)
        except ProblemError as error:
            wrong = {flaw.param: flaw for flaw in error.flaws}
    listed = usecases.page(services, visitor.caller, after=after or None, limit=LIMIT)
    shown = [each.id for each in (*listed.data, *([found] if found else []))]
    return page(
        request,
        visitor,
        "models.html",
        status=422 if wrong else 200,
        asked=asked,
        found=found,
        wrong=wrong,
        models=listed.data,
        more=listed.has_more,
        after=after,
        titles=_titles(services, visitor.caller.tenant, shown),
    )


def offered(services: Services, tenant: str) -> dict[str, str]:
    """Models for a field to suggest, what jobs have named first; a result's id with the title of its job."""
    with services.sessions.begin() as session:
        named = jobs.models(session, tenant)
    names = list(dict.fromkeys([*named, *services.catalogue.names(tenant, OFFERED)]))[:OFFERED]
    titles = _titles(services, tenant, names)
    return {name: titles.get(name, "") for name in names}


def _titles(services: Services, tenant: str, models: Iterable[str]) -> dict[str, str]:
    """Of the jobs that have made those of them that are results."""
    with services.sessions.begin() as session:
        made = [jobs.get(session, tenant, name) for name in models if is_result(name)]
    return {row.id: words.title(JobView.of(row)) for row in made}
