"""Two to six jobs side by side: scores, curves, and where their settings differ."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from api.dashboard import words
from api.dashboard.render import ROOT, page
from api.dashboard.visitors import Signed
from api.deps import CurrentServices
from api.schemas.jobs import JobView
from core.jobs import jobs

FEWEST, MOST = 2, 6

router = APIRouter()


@router.get("/compare")
def compare(
    request: Request, services: CurrentServices, visitor: Signed, job: Annotated[list[str] | None, Query()] = None
) -> Response:
    """The page; with too few or too many jobs, a word on how to pick them."""
    chosen = list(dict.fromkeys(job or []))
    right = FEWEST <= len(chosen) <= MOST
    with services.sessions.begin() as session:
        rows = [jobs.get(session, visitor.caller.tenant, name) for name in chosen] if right else []
    views = [JobView.of(row) for row in rows]
    return page(
        request,
        visitor,
        "compare.html",
        jobs=views,
        chosen=len(chosen),
        differing=differing(views),
        compared=[{"name": words.title(view), "series": f"{ROOT}/jobs/{view.id}/series"} for view in views],
    )


def differing(views: list[JobView]) -> dict[str, list[str]]:
    """The settings that are not the same in all jobs: by name, one value for each job."""
    settings = [words.flat(view.spec) for view in views]
    names = dict.fromkeys(name for setting in settings for name in setting)
    rows = {name: [setting.get(name, "") for setting in settings] for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}
