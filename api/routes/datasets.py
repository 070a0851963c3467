"""Datasets: upload, list, get, preview, delete."""

from functools import partial
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.datastructures import UploadFile

from api.connections import read_form, while_connected
from api.deps import Auth, CurrentServices, Limit, Services
from api.errors import BODY, responses
from api.limits import require_media_type
from api.schemas.datasets import DatasetPage, DatasetView, PreviewView
from api.schemas.shared import FILE_ID, MODEL, FileView
from api.usecases import datasets as usecases
from core import ids
from core.access.audit import Caller
from core.datasets import datasets
from core.errors import Code, Flaw, ProblemError
from core.request_fields import Revision, StorableText

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

DatasetId = Annotated[str, Path(description="Dataset id.", examples=[FILE_ID])]
Skip = Annotated[
    float,
    Query(
        ge=0, le=100, description="Largest percentage of invalid lines that are skipped. A file with more is rejected."
    ),
]

router = APIRouter(prefix="/datasets", tags=["datasets"])


@router.post(
    "",
    status_code=HTTPStatus.CREATED,
    openapi_extra=UPLOAD,
    responses=responses(*BODY, Code.INVALID_DATASET, Code.LIMIT_REACHED, Code.BUSY),
)
async def create_dataset(
    services: CurrentServices,
    caller: Auth,
    request: Request,
    response: Response,
    invalid_sample_skip_percentage: Skip = 0.0,
) -> DatasetView:
    """Upload a dataset: JSONL (plain or compressed with gzip or zstd) or Parquet.

    A file with invalid lines is rejected. The error lists the first invalid lines. If you upload the same file again
    under the same name, the response is the existing dataset.
    """
    require_media_type(request, "multipart/form-data")
    # The form is not a parameter: FastAPI would read it before the API key is checked, and anyone could fill the disk.
    with services.open_uploads.hold(caller.tenant):
        view = await _receive(services, caller, request, invalid_sample_skip_percentage)
    response.headers["Location"] = f"/datasets/{view.id}"
    return view


async def _receive(services: Services, caller: Caller, request: Request, skip_percentage: float) -> DatasetView:
    """Read the form of an upload and store its file."""
    async with read_form(request, max_fields=1) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            flaw = Flaw("file", "must be a part of the form", "missing", "Send the file as the form's part `file`.")
            raise ProblemError(Code.INVALID_REQUEST, "The form has no part `file`.", (flaw,))
        return await usecases.upload(services, caller, file.file, file.filename, skip_percentage)


@router.get("")
def list_datasets(
    services: CurrentServices,
    caller: Auth,
    after: Annotated[
        str | None, Query(pattern=ids.pattern("file"), description="Id of a dataset. The page starts after it.")
    ] = None,
    limit: Limit = 20,
) -> DatasetPage:
    """List your datasets, newest first."""
    with services.sessions.begin() as session:
        rows, more = datasets.page(session, caller.tenant, after=after, limit=limit)
    return DatasetPage(data=[DatasetView.of(row) for row in rows], has_more=more)


@router.get("/{dataset_id}", responses=responses(Code.NOT_FOUND))
def get_dataset(
    services: CurrentServices,
    caller: Auth,
    dataset_id: DatasetId,
) -> DatasetView:
    """Get one dataset."""
    with services.sessions.begin() as session:
        return DatasetView.of(datasets.get(session, caller.tenant, dataset_id))


@router.get("/{dataset_id}/file", responses=responses(Code.NOT_FOUND))
def get_dataset_file(
    services: CurrentServices,
    caller: Auth,
    dataset_id: DatasetId,
) -> FileView:
    """Get the file of a dataset: its size, SHA-256 and download links. The file has the records as plain JSONL."""
    return usecases.file(services, caller, dataset_id)


@router.get(
    "/{dataset_id}/preview",
    responses=responses(
        Code.NOT_FOUND,
        Code.INVALID_REQUEST,
        Code.MODEL_NOT_FOUND,
        Code.MODEL_REFUSED,
        Code.HUB_UNREACHABLE,
        Code.HUB_BUSY,
        Code.BUSY,
    ),
)
async def preview_dataset(
    services: CurrentServices,
    caller: Auth,
    request: Request,
    *,
    dataset_id: DatasetId,
    model: Annotated[
        StorableText, Query(min_length=1, max_length=512, description="Model, as in a job.", examples=[MODEL])
    ],
    revision: Annotated[Revision | None, Query(description="Branch, tag or commit of a hub model.")] = None,
    limit: Annotated[int, Query(ge=1, le=20, description="Number of records to show, 1 to 20.")] = 5,
) -> PreviewView:
    """Preview the first records of a dataset as training input of a model, with token counts.

    Each part of a record is marked: true if a repair learns to predict it, else false.
    """
    preview = partial(usecases.preview, services, caller, dataset_id, model=model, revision=revision, limit=limit)
    return await while_connected(request, preview)


@router.delete("/{dataset_id}", responses=responses(Code.NOT_FOUND, Code.CONFLICT))
def delete_dataset(
    services: CurrentServices,
    caller: Auth,
    dataset_id: DatasetId,
) -> DatasetView:
    """Delete a dataset that no unfinished job uses. The stored file is deleted within two days."""
    return usecases.delete(services, caller, dataset_id)
