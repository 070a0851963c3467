"""The form of a new job, and the estimate of its cost. Jobs are created by the same function as in `POST /jobs`."""

import re
import secrets
from collections.abc import Mapping, Sequence

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from api.dashboard import formatting, forms
from api.dashboard.pages.models import suggested_models
from api.dashboard.render import go, page
from api.dashboard.visitors import Signed, Submitted, Visitor
from api.deps import CurrentServices, Services, require_scope
from api.flaws import flaws_of_model
from api.schemas.estimates import EstimateSpec
from api.usecases import jobs as usecases
from core.access.keys import Scope
from core.datasets import datasets
from core.errors import Flaw, ProblemError
from core.estimate.fitting import USABLE_FRACTION
from core.jobs import jobs
from core.spec_parts import CPU_SETTINGS
from core.specs import JobSpec
from core.stored_specs import with_defaults

DATASET_CHOICES = 100
"""Maximum number of datasets in the selection, newest first."""
PREFILLED = ("model", "revision", "dataset")
"""Fields that the query of a link to the form may fill in."""
NONCE = re.compile(r"[\w-]{1,64}", re.ASCII)
"""Text of the field `nonce`. Other texts do not come from the form and are ignored."""

router = APIRouter()


@router.get("/jobs/new")
def show_form(
    request: Request, services: CurrentServices, visitor: Signed, clone: str = "", *, cpu: bool = False
) -> Response:
    """Show the form with the settings of the job `clone`, or else with the defaults and the values of the query.

    With `cpu`, the sizes are small enough for a CPU.
    """
    require_scope(visitor.caller, Scope.WRITE)
    values = {name: value for name, value in request.query_params.items() if name in PREFILLED}
    if cpu:
        values |= forms.values_of_spec(CPU_SETTINGS)
    if clone:
        with services.sessions.begin() as session:
            original = jobs.get(session, visitor.caller.tenant, clone)
        values = forms.values_of_spec(with_defaults(original.spec))
    return _page(request, services, visitor, values, clone=clone)


@router.post("/jobs/new")
def create(request: Request, services: CurrentServices, visitor: Signed, form: Submitted) -> Response:
    """Create the job. If the form is invalid, show it again with an error at each invalid field."""
    values, clone, nonce = forms.submitted_values(form), str(form.get("clone") or ""), str(form.get("nonce") or "")
    body, flaws = forms.request_body(values)
    message = ""
    if not flaws:
        try:
            spec = JobSpec.model_validate(body)
            return _create_job(services, visitor, spec, nonce, "clone_job" if clone else "create_job")
        except ValidationError as error:
            flaws = flaws_of_model(JobSpec, error)
        except ProblemError as error:
            flaws, message = list(error.flaws), error.message
    return _page(request, services, visitor, values, clone=clone, flaws=flaws, message=message, status=422)


@router.post("/jobs/estimate")
def estimate(request: Request, services: CurrentServices, visitor: Signed, form: Submitted) -> Response:
    """Show what the job in the form would need, or the errors of the fields that have a value.

    Returns a part of the page, not a whole page. The script of the page moves each error to its field.
    """
    body, flaws = forms.request_body(values := forms.submitted_values(form))
    result, missing = None, ""
    if not body.get("model"):
        missing = "Enter a model to see what the job needs."
    try:
        spec = EstimateSpec.model_validate(body)
        result = None if missing or flaws else usecases.estimate(services, visitor.caller, spec)
    except ValidationError as error:
        flaws += flaws_of_model(EstimateSpec, error)
    except ProblemError as error:
        flaws, missing = list(error.flaws), error.message
    by_field = forms.by_field(flaws)
    wrong = {name: flaw for name, flaw in by_field.items() if values.get(name)}
    if wrong:
        missing = f"Correct {formatting.listed(list(wrong))} to see what the job needs."
    elif by_field and not missing:
        missing = f"Fill in {formatting.listed(list(by_field))} to see what the job needs."
    workers = result.workers if result else []
    fitting = [fit for fit in workers if fit.fits]
    nearest = next((fit for fit in workers if fit.change), workers[0] if workers else None)
    return page(
        request,
        visitor,
        "estimate.html",
        missing=missing,
        flaws=wrong,
        estimate=result,
        best=min(fitting, key=lambda fit: (fit.seconds is None, fit.seconds or 0.0, fit.name), default=None),
        nearest=nearest,
        devices=body.get("devices", 1),
        usable=USABLE_FRACTION,
        change=forms.flatten(nearest.change or {}) if nearest else {},
    )


def _create_job(services: Services, visitor: Visitor, spec: JobSpec, nonce: str, action: str) -> Response:
    """Create the job and redirect to its page.

    Sending the same form twice creates one job. Sending it again with changes creates another job.
    """
    idempotency_key = f"{nonce}-{spec.fingerprint()[:16]}" if NONCE.fullmatch(nonce) else None
    job = usecases.create(services, visitor.caller, spec, idempotency_key=idempotency_key, operation=action)
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
        rows, more_datasets = datasets.page(session, visitor.caller.tenant, limit=DATASET_CHOICES)
    fields = list(forms.form_fields(values))
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
        more_datasets=more_datasets,
        models=suggested_models(services, visitor.caller.tenant),
        clone=clone,
        nonce=secrets.token_urlsafe(12),
        flaws=forms.by_field(flaws),
        names={field.name for field in fields},
        message=message,
    )
