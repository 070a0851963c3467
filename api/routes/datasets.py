"""Datasets: uploaded and checked, listed, looked at."""

from functools import partial
from http import HTTPStatus
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from starlette.datastructures import UploadFile

from api.deps import Auth, CurrentServices, Limit, RequireContentType, Services
from api.errors import BODY, responses
from api.schemas.datasets import DatasetPage, DatasetView, PreviewView
from api.schemas.shared import FILE_ID, MODEL
from core import ids
from core.access import audit
from core.access.audit import Caller
from core.datasets import datasets
from core.datasets.previews import preview
from core.errors import Code, Flaw, ProblemError
from core.specs import StorableText

UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "contentMediaType": "application/octet-stream"}},
                },
                "example": {"file": '{"text": "How do I reset my password?"}\n{"text": "Open the settings."}\n'},
            }
        },
    }
}

Skip = Annotated[
    float, Query(ge=0, le=100, description="Broken lines, in percent of all, that are left out and not refused.")
]

router = APIRouter(prefix="/datasets", tags=["datasets"])


@router.post(
    "",
    operation_id="create_dataset",
    status_code=HTTPStatus.CREATED,
    dependencies=[Depends(RequireContentType("multipart/form-data"))],
    openapi_extra=UPLOAD,
    responses=responses(
        *BODY,
        Code.INVALID_DATASET,
        Code.LIMIT_REACHED,
    ),
)
async def create_dataset(
    services: CurrentServices,
    caller: Auth,
    request: Request,
    response: Response,
    invalid_sample_skip_percentage: Skip = 0.0,
) -> DatasetView:
    """Upload JSONL, plain or by gzip or zstd, or Parquet. Broken lines are named, and nothing is stored then.

    The same file under the same name again is answered with the dataset that it made first.

    The form is read here and not by a parameter, so that nobody without a key can fill the disk.
    """
    async with request.form(max_files=1, max_fields=1) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            flaw = Flaw("file", "is a part of the form", "nothing", "Send the file as the form's part `file`.")
            raise ProblemError(Code.INVALID_REQUEST, "The form has no part `file`.", (flaw,))
        view = await run_sync(store, services, caller, file, invalid_sample_skip_percentage, limiter=services.uploads)
    response.headers["Location"] = f"/datasets/{view.id}"
    return view


@router.get("", operation_id="list_datasets", responses=responses(Code.INVALID_REQUEST))
def list_datasets(
    services: CurrentServices,
    caller: Auth,
    after: Annotated[
        str | None, Query(pattern=ids.pattern("file"), description="Id of a dataset: those uploaded before it.")
    ] = None,
    limit: Limit = 20,
) -> DatasetPage:
    """Your datasets, newest first."""
    with services.sessions.begin() as session:
        rows, more = datasets.page(session, caller.tenant, after=after, limit=limit)
    return DatasetPage(data=[DatasetView.of(row) for row in rows], has_more=more)


@router.get(
    "/{dataset_id}",
    operation_id="get_dataset",
    responses=responses(Code.NOT_FOUND, Code.INVALID_REQUEST),
)
def get_dataset(
    services: CurrentServices,
    caller: Auth,
    dataset_id: Annotated[str, Path(description="Id of a dataset.", examples=[FILE_ID])],
) -> DatasetView:
    """One dataset."""
    with services.sessions.begin() as session:
        return DatasetView.of(datasets.get(session, caller.tenant, dataset_id))


@router.get(
    "/{dataset_id}/preview",
    operation_id="preview_dataset",
    responses=responses(
        Code.NOT_FOUND,
        Code.INVALID_REQUEST,
        Code.MODEL_NOT_FOUND,
        Code.MODEL_REFUSED,
        Code.HUB_UNREACHABLE,
        Code.HUB_BUSY,
    ),
)
async def preview_dataset(
    services: CurrentServices,
    caller: Auth,
    *,
    dataset_id: Annotated[str, Path(description="Id of a dataset.", examples=[FILE_ID])],
    model: Annotated[
        StorableText, Query(min_length=1, max_length=512, description="As a job names it.", examples=[MODEL])
    ],
    revision: Annotated[
        StorableText | None, Query(max_length=255, description="Branch, tag or commit of a hub model.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=20, description="Records to show, 1 to 20.")] = 5,
) -> PreviewView:
    """The first records as that model's tokenizer reads them, the part that is trained on marked; tokens counted."""
    see = partial(look, services, caller, dataset_id, model=model, revision=revision, limit=limit)
    return await run_sync(see, limiter=services.previews)


def look(
    services: Services, caller: Caller, dataset_id: str, *, model: str, revision: str | None = None, limit: int
) -> PreviewView:
    """What that model would read of the caller's dataset."""
    with services.sessions.begin() as session:
        row = datasets.get(session, caller.tenant, dataset_id)
        session.expunge(row)
    with services.models.tokenizer(caller.tenant, model, revision) as (source, tokenizer):
        return PreviewView.of(row, source, preview(services.storage, row, tokenizer, limit))


@router.delete(
    "/{dataset_id}",
    operation_id="delete_dataset",
    responses=responses(Code.NOT_FOUND, Code.INVALID_REQUEST, Code.CONFLICT),
)
def delete_dataset(
    services: CurrentServices,
    caller: Auth,
    dataset_id: Annotated[str, Path(description="Id of a dataset.", examples=[FILE_ID])],
) -> DatasetView:
    """Delete a dataset that no job needs any more; its file is gone within two days."""
    with services.sessions.begin() as session:
        row = datasets.delete(session, caller.tenant, dataset_id)
        audit.record(session, caller, "delete_dataset", row.id)
        return DatasetView.of(row)


def store(services: Services, caller: Caller, file: UploadFile, skip_percentage: float = 0.0) -> DatasetView:
    """The dataset that an upload becomes; INVALID_DATASET where it is none, LIMIT_REACHED where it is too much."""
    content = services.intake.store(caller.tenant, file.file, skip_percentage)
    with services.sessions.begin() as session:
        row, new = services.intake.keep(session, caller.tenant, file.filename or "", content)
        if new:
            audit.record(session, caller, "create_dataset", row.id)
        return DatasetView.of(row)
