"""Imports of datasets: files sent in parts directly to the object storage, or sources that the service fetches."""

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
from core.infra.storage import PARTS

ImportId = Annotated[str, Path(description="Import id.", examples=[IMPORT_ID])]
ERRORS = responses(Code.NOT_FOUND, Code.INVALID_REQUEST)

router = APIRouter(prefix="/imports", tags=["datasets"], route_class=JsonRoute)


@router.post(
    "",
    operation_id="create_import",
    status_code=HTTPStatus.CREATED,
    dependencies=[Depends(RequireContentType("application/json"))],
    responses=responses(*BODY, Code.LIMIT_REACHED),
)
def create_import(services: CurrentServices, caller: Auth, body: ImportRequest, response: Response) -> ImportView:
    """Begin an import: send a file in parts, or have the service fetch a source.

    If an unfinished import has the same name, size and `resume_key`, that import is returned. You can then continue
    it.
    """
    view = usecases.create(services, caller, body)
    response.headers["Location"] = f"/imports/{view.id}"
    return view


@router.get("", operation_id="list_imports", responses=responses(Code.INVALID_REQUEST))
def list_imports(
    services: CurrentServices,
    caller: Auth,
    after: Annotated[
        str | None, Query(pattern=ids.pattern("imp"), description="Id of an import. The page starts after it.")
    ] = None,
    limit: Limit = 20,
) -> ImportPage:
    """List your imports, newest first. Imports that are done or failed are deleted after 30 days."""
    with services.sessions.begin() as session:
        rows, more = imports.page(session, caller.tenant, after=after, limit=limit)
        return ImportPage(data=[ImportView.of(row) for row in rows], has_more=more)


@router.get("/{import_id}", operation_id="get_import", responses=ERRORS)
def get_import(services: CurrentServices, caller: Auth, import_id: ImportId) -> ImportView:
    """Get one import: its status, and the id of its dataset or the error."""
    with services.sessions.begin() as session:
        return ImportView.of(imports.get(session, caller.tenant, import_id))


@router.get("/{import_id}/parts", operation_id="list_import_parts", responses=ERRORS)
def list_import_parts(
    services: CurrentServices,
    caller: Auth,
    import_id: ImportId,
    after: Annotated[int, Query(ge=0, le=PARTS, description="Number of a part. The page starts after it.")] = 0,
    limit: Limit = 20,
) -> PartPage:
    """List the parts of an import. Parts that the storage has not received yet have a link to PUT them to."""
    return usecases.parts(services, caller, import_id, after=after, limit=limit)


@router.post(
    "/{import_id}/complete",
    operation_id="complete_import",
    status_code=HTTPStatus.ACCEPTED,
    responses=responses(Code.NOT_FOUND, Code.INVALID_REQUEST, Code.CONFLICT),
)
def complete_import(services: CurrentServices, caller: Auth, import_id: ImportId) -> ImportView:
    """Complete an import after you have sent all parts. The file is then checked like an upload. Idempotent."""
    return usecases.complete(services, caller, import_id)


@router.delete("/{import_id}", operation_id="delete_import", responses=ERRORS)
def delete_import(services: CurrentServices, caller: Auth, import_id: ImportId) -> ImportView:
    """Delete an import and the parts that were sent. The dataset of a finished import is kept."""
    return usecases.delete(services, caller, import_id)
