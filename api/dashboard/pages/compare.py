"""The page that compares two to six jobs: their scores, their curves, and the settings in which they differ."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from api.dashboard import formatting, forms
from api.dashboard.render import ROOT, page
from api.dashboard.visitors import Signed
from api.deps import CurrentServices
from api.schemas.jobs import JobView
from core.jobs import jobs

MIN_JOBS, MAX_JOBS = 2, 6

router = APIRouter()


@router.get("/compare")
def compare(
    request: Request, services: CurrentServices, visitor: Signed, job: Annotated[list[str] | None, Query()] = None
) -> Response:
    """Show the comparison. With fewer than two or more than six jobs, explain how to select jobs."""
    selected = list(dict.fromkeys(job or []))
    comparable = MIN_JOBS <= len(selected) <= MAX_JOBS
    with services.sessions.begin() as session:
        rows = [jobs.get(session, visitor.caller.tenant, job_id) for job_id in selected] if comparable else []
    views = [JobView.of(row) for row in rows]
    return page(
        request,
        visitor,
        "compare.html",
        jobs=views,
        run_seconds=[formatting.run_seconds(row) for row in rows],
        selected=len(selected),
        differing=differing_settings(views),
        charts=[{"name": formatting.job_title(view), "series": f"{ROOT}/jobs/{view.id}/series"} for view in views],
    )


def differing_settings(views: list[JobView]) -> dict[str, list[str]]:
    """Return the settings in which the jobs differ: name of the setting -> its value in each job."""
    settings = [forms.flatten(view.spec) for view in views]
    names = dict.fromkeys(name for setting in settings for name in setting)
    rows = {name: [setting.get(name, "") for setting in settings] for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}
