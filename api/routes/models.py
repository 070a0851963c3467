"""Models that a job can prune and repair: list, get."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from api.deps import Auth, CurrentServices, Limit
from api.errors import responses
from api.schemas.models import ModelPage, ModelView
from api.usecases import models
from core.errors import Code
from core.request_fields import Revision, StorableText

router = APIRouter(prefix="/models", tags=["models"])


@router.get("")
def list_models(
    services: CurrentServices,
    caller: Auth,
    after: Annotated[
        StorableText | None, Query(max_length=512, description="Id of a model. The page starts after it.")
    ] = None,
    limit: Limit = 20,
) -> ModelPage:
    """List models that a job can use: local models, models in the service's hub cache, and results of your jobs."""
    return models.page(services, caller, after=after, limit=limit)


@router.get(
    "/{model_id:path}",
    responses=responses(Code.NOT_FOUND, Code.MODEL_REFUSED, Code.HUB_UNREACHABLE, Code.HUB_BUSY, Code.INVALID_REQUEST),
)
def get_model(
    services: CurrentServices,
    caller: Auth,
    model_id: Annotated[
        StorableText,
        Path(
            max_length=512,
            description="Model id, as in the list, or the id of any model on the Hugging Face Hub.",
            examples=["tiny"],
        ),
    ],
    revision: Annotated[Revision | None, Query(description="Branch, tag or commit of a hub model.")] = None,
) -> ModelView:
    """Get one model: size, architecture, licence, and which workers can run a job with it.

    The model can be any model on the Hugging Face Hub, also one that `GET /models` does not list.
    """
    return models.get(services, caller, model_id, revision)
