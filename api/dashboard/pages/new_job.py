"""A new job: the form, what it would take, and the job that it makes by the rules of `POST /jobs`."""

import secrets
from collections.abc import Mapping, Sequence

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from api.dashboard import forms, words
from api.dashboard.pages.models import offered
from api.dashboard.render import go, page
from api.dashboard.visitors import Signed, Submitted, Visitor
from api.deps import CurrentServices, Services, require_scope
from api.flaws import flaws_of_model
from api.schemas.estimates import EstimateSpec
from api.usecases import jobs as usecases
from core.access.keys import Scope
from core.datasets import datasets
from core.errors import Flaw, ProblemError
from core.jobs import jobs
from core.specs import JobSpec

CHOICES = 100
"""Datasets to pick from; the id of an older one can be typed."""
PICKED = ("model", "revision", "dataset")
"""What other pages fill in."""

router = APIRouter()


@router.get("/jobs/new")
def ask(request: Request, services: CurrentServices, visitor: Signed, clone: str = "") -> Response:
    """The form with all defaults but for what the query says by name, or with what another job asked for."""
    require_scope(visitor.caller, Scope.WRITE)
    values = {name: value for name, value in request.query_params.items() if name in PICKED}
    if clone:
        with services.sessions.begin() as session:
            former = jobs.get(session, visitor.caller.tenant, clone)
        values = forms.filled(JobSpec.model_validate(former.spec).model_dump(mode="json"))
    return _page(request, services, visitor, values, clone=clone)


@router.post("/jobs")
def create(request: Request, services: CurrentServices, visitor: Signed, form: Submitted) -> Response:
    """Make the job, or show the form again with what is wrong beside its fields."""
    values, clone, nonce = forms.entered(form), str(form.get("clone") or ""), str(form.get("nonce") or "")
    body, flaws = forms.body(values)
    message = ""
    if not flaws:
        try:
            spec = JobSpec.model_validate(body)
            return _made(services, visitor, spec, nonce, "clone_job" if clone else "create_job")
        except ValidationError as error:
            flaws = flaws_of_model(JobSpec, error)
        except ProblemError as error:
            flaws, message = list(error.flaws), error.message
    return _page(request, services, visitor, values, clone=clone, flaws=flaws, message=message, status=422)


@router.post("/jobs/estimate")
def estimate(request: Request, services: CurrentServices, visitor: Signed, form: Submitted) -> Response:
    """What the job in the form would take, or what the form still lacks: a part of its page."""
    body, _ = forms.body(forms.entered(form))
    if not body.get("model"):
        return page(request, visitor, "estimate.html", lacks="Name a model to see what the job will take.")
    try:
        found = usecases.estimate(services, visitor.caller, EstimateSpec.model_validate(body))
    except ValidationError as error:
        flaw = flaws_of_model(EstimateSpec, error)[0]
        return page(request, visitor, "estimate.html", lacks=f"{flaw.param}: {flaw.rule}")
    except ProblemError as error:
        return page(request, visitor, "estimate.html", lacks=error.message)
    fitting = [fit for fit in found.workers if fit.fits]
    best = min(fitting, key=lambda fit: (fit.seconds is None, fit.seconds or 0.0, fit.name), default=None)
    change = words.flat(next((fit.change for fit in found.workers if fit.change), {}))
    return page(request, visitor, "estimate.html", lacks="", found=found, best=best, change=change)


def _made(services: Services, visitor: Visitor, spec: JobSpec, nonce: str, action: str) -> Response:
    """The page of the job. The same form sent twice makes one job; with something changed in it, another one."""
    once = f"{nonce}-{spec.fingerprint()[:16]}" if nonce else None
    job = usecases.create(services, visitor.caller, spec, idempotency_key=once, operation=action)
    return go(f"/jobs/{job.id}")


def _page(
    request: Request,
    services: Services,
    visitor: Visitor,
    values: Mapping[str, str],
    *,
    clone: str = "",
    flaws: Sequence[Flaw] = (),
    message: str = "",
    status: int = 200,
) -> Response:
    with services.sessions.begin() as session:
        rows, _ = datasets.page(session, visitor.caller.tenant, limit=CHOICES)
    fields = list(forms.inputs(values))
    names = {field.name for field in fields}
    return page(
        request,
        visitor,
        "new_job.html",
        status=status,
        groups={
            group: [field for field in fields if field.group == group]
            for group in dict.fromkeys(f.group for f in fields)
        },
        datasets=rows,
        models=offered(services, visitor.caller.tenant),
        clone=clone,
        nonce=secrets.token_urlsafe(12),
        wrong={flaw.param: flaw for flaw in flaws},
        elsewhere=[flaw for flaw in flaws if flaw.param not in names],
        flaws=flaws,
        message=message,
    )
