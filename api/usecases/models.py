"""List the models that a job can use, and look up one model."""

from api.deps import Services
from api.schemas.models import ModelPage, ModelView, SkippedModel
from core.access.audit import Caller
from core.errors import Code, ProblemError


def page(services: Services, caller: Caller, *, after: str | None, limit: int) -> ModelPage:
    """List local models, models in the service's hub cache, and results of the tenant's jobs."""
    part = services.catalogue.page(caller.tenant, after=after, limit=limit)
    return ModelPage(
        data=[ModelView.of(entry) for entry in part.entries],
        has_more=part.next is not None,
        next=part.next,
        skipped=[SkippedModel.model_validate(each, from_attributes=True) for each in part.skipped],
    )


def get(services: Services, caller: Caller, model_id: str, revision: str | None = None) -> ModelView:
    """Look up one model, on the hub if it is not stored here. Raises NOT_FOUND if it does not exist.

    Other functions raise MODEL_NOT_FOUND for a missing model, but a route that reads answers NOT_FOUND.
    """
    try:
        return ModelView.of(services.catalogue.get(caller.tenant, model_id, revision))
    except ProblemError as error:
        if error.code is not Code.MODEL_NOT_FOUND:
            raise
        raise ProblemError(Code.NOT_FOUND, error.message, error.flaws) from error
