"""Models: what can be repaired here."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from api.deps import Auth, CurrentServices, Limit
from api.errors import responses
from api.schemas.models import ModelPage, ModelView
from core.errors import Code, ProblemError

ID = r"^[^\x00]*$"

router = APIRouter(prefix="/models", tags=["models"])


@router.get("", operation_id="list_models", responses=responses(Code.INVALID_REQUEST))
def list_models(
    services: CurrentServices,
    caller: Auth,
    after: Annotated[
        str | None, Query(max_length=512, pattern=ID, description="Id of a model: those behind it.")
    ] = None,
    limit: Limit = 20,
) -> ModelPage:
    """What can be repaired here: local models, those in the hub's cache, and what your jobs have published."""
    found, more = services.catalogue.page(caller.tenant, after=after, limit=limit)
    return ModelPage(data=[ModelView.model_validate(each.to_json()) for each in found], has_more=more)


@router.get(
    "/{model_id:path}",
    operation_id="get_model",
    responses=responses(Code.NOT_FOUND, Code.MODEL_REFUSED, Code.HUB_UNREACHABLE, Code.HUB_BUSY, Code.INVALID_REQUEST),
)
def get_model(
    services: CurrentServices,
    caller: Auth,
    model_id: Annotated[
        str, Path(max_length=512, pattern=ID, description="Id of a model; of the hub, any.", examples=["tiny"])
    ],
    revision: Annotated[
        str | None, Query(max_length=128, pattern=ID, description="Branch, tag or commit of a hub model.")
    ] = None,
) -> ModelView:
    """One model, also one of the hub that is not listed: size, architecture, licence, and which workers it fits."""
    try:
        return ModelView.model_validate(services.catalogue.get(caller.tenant, model_id, revision).to_json())
    except ProblemError as error:
        if error.code is not Code.MODEL_NOT_FOUND:
            raise
        raise ProblemError(Code.NOT_FOUND, error.message, error.flaws) from error
