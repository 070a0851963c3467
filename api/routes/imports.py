"""Datasets on their way: sent in parts straight to the object storage, or fetched from where they lie."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response

from api.deps import Auth, CurrentServices, Limit, RequireContentType
from api.errors import BODY, responses
from api.limits import JsonRoute
from api.schemas.imports import IMPORT_ID, ImportPage, ImportRequest, ImportView, PartPage
from api.usecases import imports as usecases
from core import ids
from core.datasets import imports
from core.errors import Code

ImportId = Annotated[str, Path(description="Id of an import.", examples=[IMPORT_ID])]
REFUSALS = responses(Code.NOT_FOUND, Code.INVALID_REQUEST)

router = APIRouter(prefix="/imports", tags=["datasets"], route_class=JsonRoute)


@router.post(
    "",
    operation_id="create_import",
    status_code=HTTPStatus.CREATED,
    dependencies=[Depends(RequireContentType("application/json"))],
    responses=responses(*BODY, Code.LIMIT_REACHED),
)
def create_import(services: CurrentServices, caller: Auth, body: ImportRequest, response: Response) -> ImportView:
    """Begin to send a file in parts, or have a source fetched. An unfinished one with the same `resume_key` goes on."""
    view = usecases.create(services, caller, body)
    response.headers["Location"] = f"/imports/{view.id}"
    return view


@router.get("", operation_id="list_imports", responses=responses(Code.INVALID_REQUEST))
def list_imports(
    services: CurrentServices,
    caller: Auth,
    after: Annotated[
        str | None, Query(pattern=ids.pattern("imp"), description="Id of an import: those begun before it.")
    ] = None,
    limit: Limit = 20,
) -> ImportPage:
    """Your imports, newest first; a settled one is forgotten after thirty days."""
    with services.sessions.begin() as session:
        rows, more = imports.page(session, caller.tenant, after=after, limit=limit)
        return ImportPage(data=[ImportView.of(row) for row in rows], has_more=more)


@router.get("/{import_id}", operation_id="get_import", responses=REFUSALS)
def get_import(services: CurrentServices, caller: Auth, import_id: ImportId) -> ImportView:
    """One import: what it became, or what is wrong with it."""
    with services.sessions.begin() as session:
        return ImportView.of(imports.get(session, caller.tenant, import_id))


@router.get("/{import_id}/parts", operation_id="list_import_parts", responses=REFUSALS)
def list_import_parts(
    services: CurrentServices,
    caller: Auth,
    import_id: ImportId,
    after: Annotated[int, Query(ge=0, le=imports.PARTS, description="Number of a part: those behind it.")] = 0,
    limit: Limit = 20,
) -> PartPage:
    """The parts of a file that is sent: which are there, as the storage knows, and where to PUT those that are not."""
    return usecases.parts(services, caller, import_id, after=after, limit=limit)


@router.post(
    "/{import_id}/complete",
    operation_id="complete_import",
    status_code=HTTPStatus.ACCEPTED,
    responses=responses(Code.NOT_FOUND, Code.INVALID_REQUEST, Code.CONFLICT),
)
def complete_import(services: CurrentServices, caller: Auth, import_id: ImportId) -> ImportView:
    """Say that all parts are there: the file is checked as every upload is. Again is no error."""
    return usecases.complete(services, caller, import_id)


@router.delete("/{import_id}", operation_id="delete_import", responses=REFUSALS)
def delete_import(services: CurrentServices, caller: Auth, import_id: ImportId) -> ImportView:
    """Give an import up and forget its parts; the dataset that it became stays."""
    return usecases.delete(services, caller, import_id)
