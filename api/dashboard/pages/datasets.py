"""The pages of datasets: upload a file, list and download datasets, and preview one as training input of a model."""

from functools import partial

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from starlette.datastructures import UploadFile

from api.connections import while_connected
from api.dashboard.pages.models import suggested_models
from api.dashboard.render import go, page
from api.dashboard.visitors import Signed, Submitted, SubmittedUpload, Visitor
from api.deps import CurrentServices, Services
from api.schemas.datasets import DatasetView, PreviewView
from api.usecases import datasets as usecases
from core import ids
from core.datasets import datasets
from core.errors import Code, Flaw, ProblemError

LIMIT = 25
PREVIEW_RECORDS = 10

router = APIRouter()


@router.get("/datasets")
def list_datasets(
    request: Request, services: CurrentServices, visitor: Signed, after: str = "", new: str = ""
) -> Response:
    """Show the list of datasets. `new` is the id of a dataset that was just uploaded."""
    return _page(request, services, visitor, after=after, new=new)


@router.get("/datasets/{dataset_id}")
async def show(
    request: Request, services: CurrentServices, visitor: Signed, dataset_id: str, model: str = ""
) -> Response:
    """Show one dataset. If `model` is given, also show the first records as training input of that model."""
    preview, problem = None, ""
    if model:
        compute = partial(usecases.preview, services, visitor.caller, dataset_id, model=model, limit=PREVIEW_RECORDS)
        try:
            preview = await while_connected(request, compute)
        except ProblemError as error:
            if error.code in {Code.NOT_FOUND, Code.BUSY}:
                raise
            problem = error.message
    return await run_sync(
        partial(_dataset_page, request, services, visitor, dataset_id, model=model, preview=preview, problem=problem)
    )


@router.get("/datasets/{dataset_id}/file")
def download(services: CurrentServices, visitor: Signed, dataset_id: str) -> Response:
    """Redirect to a new presigned link to the dataset's file, as the page of a job does for a checkpoint's files."""
    link = usecases.file(services, visitor.caller, dataset_id).url
    return RedirectResponse(link, 303, headers={"Cache-Control": "no-store"})


@router.post("/datasets/{dataset_id}/delete")
def delete(request: Request, services: CurrentServices, visitor: Signed, _: Submitted, dataset_id: str) -> Response:
    """Delete the dataset. If a job that has not ended uses it, show the page of the dataset with the reason."""
    try:
        usecases.delete(services, visitor.caller, dataset_id)
    except ProblemError as error:
        if error.code is not Code.CONFLICT:
            raise
        return _dataset_page(request, services, visitor, dataset_id, refused=error.message)
    return go("/datasets")


def _dataset_page(
    request: Request,
    services: Services,
    visitor: Visitor,
    dataset_id: str,
    *,
    model: str = "",
    preview: PreviewView | None = None,
    problem: str = "",
    refused: str = "",
) -> Response:
    """Show one dataset. `problem` says why there is no preview, and `refused` why the dataset was not deleted."""
    with services.sessions.begin() as session:
        view = DatasetView.of(datasets.get(session, visitor.caller.tenant, dataset_id))
    return page(
        request,
        visitor,
        "dataset.html",
        status=422 if problem else 409 if refused else 200,
        dataset=view,
        models=suggested_models(services, visitor.caller.tenant),
        model=model,
        preview=preview,
        problem=problem,
        refused=refused,
    )


@router.post("/datasets")
async def upload(request: Request, services: CurrentServices, visitor: Signed, form: SubmittedUpload) -> Response:
    """Store the uploaded file. If it is invalid, show an error for each invalid line."""
    file = form.get("file")
    try:
        if not isinstance(file, UploadFile) or not file.filename:
            raise ProblemError(Code.INVALID_REQUEST, "No file was sent. Select a file.")
        view = await usecases.upload(services, visitor.caller, file.file, file.filename)
    except ProblemError as error:
        if error.code is Code.BUSY:
            raise
        show_again = partial(_page, request, services, visitor, problem=error.message, flaws=error.flaws, status=422)
        return await run_sync(show_again)
    return go(f"/datasets?new={view.id}")


def _page(
    request: Request,
    services: Services,
    visitor: Visitor,
    *,
    after: str = "",
    new: str = "",
    problem: str = "",
    flaws: tuple[Flaw, ...] = (),
    status: int = 200,
) -> Response:
    cursor = after if ids.is_id("file", after) else None
    with services.sessions.begin() as session:
        rows, more = datasets.page(session, visitor.caller.tenant, after=cursor, limit=LIMIT)
    views = [DatasetView.of(row) for row in rows]
    return page(
        request,
        visitor,
        "datasets.html",
        status=status,
        datasets=views,
        more=more,
        new=new,
        problem=problem,
        flaws=flaws,
    )
