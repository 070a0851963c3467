"""Models: what can be repaired here."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from api.deps import Auth, CurrentServices, Limit
from api.errors import responses
from api.schemas.models import ModelPage, ModelView
from api.usecases import models
from core.errors import Code

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
    return models.page(services, caller, after=after, limit=limit)


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
    return models.get(services, caller, model_id, revision)
