"""Datasets on their way: sent in parts straight to the object storage, or fetched from where they lie."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response

from api.deps import Auth, CurrentServices, Limit, RequireContentType, Services
from api.errors import BODY, responses
from api.limits import JsonRoute
from api.schemas.imports import IMPORT_ID, ImportPage, ImportRequest, ImportView, PartPage, PartView
from core import ids
from core.access import audit
from core.access.audit import Caller
from core.datasets import imports, sources
from core.datasets.datasets import clean_name
from core.datasets.imports import State
from core.errors import Code, Flaw, ProblemError
from core.jobs import fairness
from core.tables import Import

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
    view = _resumed(services, caller, body) or _begun(services, caller, body)
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
    with services.sessions.begin() as session:
        row = imports.get(session, caller.tenant, import_id)
    if row.upload is None or row.bytes is None:
        return PartPage(data=[], has_more=False)
    sent = row.state != State.RECEIVING
    there = {} if sent else services.storage.parts(imports.key(row.id), row.upload)
    count = imports.part_count(row.bytes)
    data = []
    for number in range(after + 1, min(after + limit, count) + 1):
        length = imports.part_length(row.bytes, number)
        received = sent or (number in there and there[number].bytes == length)
        url = None if received else services.storage.part_link(imports.key(row.id), row.upload, number, length)
        data.append(PartView(number=number, bytes=length, received=received, url=url))
    return PartPage(data=data, has_more=after + limit < count)


@router.post(
    "/{import_id}/complete",
    operation_id="complete_import",
    status_code=HTTPStatus.ACCEPTED,
    responses=responses(Code.NOT_FOUND, Code.INVALID_REQUEST, Code.CONFLICT),
)
def complete_import(services: CurrentServices, caller: Auth, import_id: ImportId) -> ImportView:
    """Say that all parts are there: the file is checked as every upload is. Again is no error."""
    with services.sessions.begin() as session:
        row = imports.get(session, caller.tenant, import_id)
    if row.state == State.RECEIVING:
        _finish(services, row)
    with services.sessions.begin() as session:
        row = imports.get(session, caller.tenant, import_id, change=True)
        if row.state == State.RECEIVING:
            imports.start_check(row)
            audit.record(session, caller, "complete_import", row.id)
            session.flush()
        return ImportView.of(row)


@router.delete("/{import_id}", operation_id="delete_import", responses=REFUSALS)
def delete_import(services: CurrentServices, caller: Auth, import_id: ImportId) -> ImportView:
    """Give an import up and forget its parts; the dataset that it became stays."""
    with services.sessions.begin() as session:
        row = imports.get(session, caller.tenant, import_id, change=True)
        view, upload = ImportView.of(row), row.upload
        session.delete(row)
        audit.record(session, caller, "delete_import", view.id)
    if upload is not None:
        services.storage.abort_upload(imports.key(view.id), upload)
        services.storage.delete([imports.key(view.id)])
    return view


def _resumed(services: Services, caller: Caller, body: ImportRequest) -> ImportView | None:
    if body.resume_key is None or body.bytes is None:
        return None
    with services.sessions.begin() as session:
        name = clean_name(body.name or "")
        row = imports.find_unfinished(session, caller.tenant, name, body.bytes, body.resume_key)
        return ImportView.of(row) if row else None


def _begun(services: Services, caller: Caller, body: ImportRequest) -> ImportView:
    settings = services.settings
    if body.source is not None:
        given = sources.require_allowed(body.source, settings.dataset_buckets)
    elif body.bytes is not None and body.bytes > settings.max_dataset_bytes:
        way_out = "Split it, or have the operator raise the limit."
        flaw = Flaw("bytes", f"is at most {settings.max_dataset_bytes}", str(body.bytes), way_out)
        raise ProblemError(Code.INVALID_REQUEST, "The file is too large.", (flaw,))
    else:
        given = ""
    row = Import(
        id=ids.new("imp"),
        tenant=caller.tenant,
        name=clean_name(body.name or given),
        source=body.source,
        bytes=body.bytes,
        resume_key=body.resume_key,
        skip_percentage=body.invalid_sample_skip_percentage,
    )
    with services.sessions.begin() as session:
        fairness.require_storage_quota(session, caller.tenant, settings.tenant_bytes, more=body.bytes or 1)
        imports.require_import_quota(session, caller.tenant)
        if body.source is None:
            row.state, row.upload = State.RECEIVING, services.storage.begin_upload(imports.key(row.id))
        else:
            imports.start_check(row)
        session.add(row)
        session.flush()
        session.refresh(row)
        audit.record(session, caller, "create_import", row.id)
        return ImportView.of(row)


def _finish(services: Services, row: Import) -> None:
    """Make the parts an object; CONFLICT where one is not there, or not whole."""
    assert row.bytes is not None
    assert row.upload is not None
    key, count = imports.key(row.id), imports.part_count(row.bytes)
    there = services.storage.parts(key, row.upload)
    wanted = {number: imports.part_length(row.bytes, number) for number in range(1, count + 1)}
    missing = [number for number, length in wanted.items() if number not in there or there[number].bytes != length]
    if missing and services.storage.modified(key) is None:
        shown = ", ".join(map(str, missing[:10])) + ("…" if len(missing) > 10 else "")
        flaw = Flaw(
            "parts", "are all there and whole", f"without {shown}", f"GET /imports/{row.id}/parts and PUT them."
        )
        raise ProblemError(Code.CONFLICT, f"{len(missing)} of {count} parts are still to come.", (flaw,))
    if not missing:
        services.storage.finish_upload(key, row.upload, {number: there[number] for number in wanted})
