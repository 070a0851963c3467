"""Imports of datasets: files sent in parts directly to the object storage, or sources that the service fetches."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from api.deps import Auth, CurrentServices, JsonRoute, Limit, Services
from api.errors import BODY, responses
from api.schemas.imports import IMPORT_ID, ImportPage, ImportPart, ImportRequest, ImportView, PartPage
from core import ids
from core.access import audit
from core.access.audit import Caller
from core.access.keys import Scope
from core.datasets import imports, sources
from core.datasets.datasets import clean_name
from core.errors import Code, Flaw, ProblemError
from core.infra.storage import PARTS
from core.jobs import fairness
from core.states import ImportState
from core.tables import Import

ImportId = Annotated[str, Path(description="Import id.", examples=[IMPORT_ID])]
ERRORS = responses(Code.NOT_FOUND)

router = APIRouter(prefix="/imports", tags=["datasets"], route_class=JsonRoute)


@router.post("", status_code=HTTPStatus.CREATED, responses=responses(*BODY, Code.LIMIT_REACHED))
def create_import(services: CurrentServices, caller: Auth, body: ImportRequest, response: Response) -> ImportView:
    """Begin an import: send a file in parts, or have the service fetch a source.

    If an unfinished import has the same name, size and `resume_key`, that import is returned. You can then continue
    it.
    """
    view = _resume(services, caller, body) or _begin(services, caller, body)
    response.headers["Location"] = f"/imports/{view.id}"
    return view


@router.get("")
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


@router.get("/{import_id}", responses=ERRORS)
def get_import(services: CurrentServices, caller: Auth, import_id: ImportId) -> ImportView:
    """Get one import: its status, and the id of its dataset or the error."""
    with services.sessions.begin() as session:
        return ImportView.of(imports.get(session, caller.tenant, import_id))


@router.get("/{import_id}/parts", responses=ERRORS)
def list_import_parts(
    services: CurrentServices,
    caller: Auth,
    import_id: ImportId,
    after: Annotated[int, Query(ge=0, le=PARTS, description="Number of a part. The page starts after it.")] = 0,
    limit: Limit = 20,
) -> PartPage:
    """List the parts of an import. Parts that the storage has not received yet have a link to PUT them to.

    A key of scope `read` gets no links.
    """
    with services.sessions.begin() as session:
        row = imports.get(session, caller.tenant, import_id)
    if row.upload is None or row.bytes is None:
        return PartPage(data=[], has_more=False)
    key, sent = imports.key(row.id), row.state != ImportState.RECEIVING
    stored = {} if sent else services.storage.parts_after(key, row.upload, after, limit)
    # If a process dies after it has joined the parts, the object exists and the upload does not.
    ended = not sent and not stored and not services.storage.has_upload(key, row.upload)
    gone = ended and _is_gone(services, caller, row.id, row.upload)
    sent = sent or (ended and not gone)
    writes = caller.scope.allows(Scope.WRITE) and not gone
    count = imports.part_count(row.bytes)
    data = []
    for number in range(after + 1, min(after + limit, count) + 1):
        length = imports.part_length(row.bytes, number)
        received = sent or (number in stored and stored[number].bytes == length)
        link = writes and not received
        url = services.storage.part_link(key, row.upload, number, length) if link else None
        data.append(ImportPart(number=number, bytes=length, received=received, url=url))
    return PartPage(data=data, has_more=after + limit < count)


@router.post(
    "/{import_id}/complete", status_code=HTTPStatus.ACCEPTED, responses=responses(Code.NOT_FOUND, Code.CONFLICT)
)
def complete_import(services: CurrentServices, caller: Auth, import_id: ImportId) -> ImportView:
    """Complete an import after you have sent all parts. The file is then checked like an upload. Idempotent.

    If the storage has lost the parts, the import has failed. Begin a new one.
    """
    with services.sessions.begin() as session:
        row = imports.get(session, caller.tenant, import_id)
    if row.state == ImportState.RECEIVING:
        _join(services, caller, row)
    with services.sessions.begin() as session:
        row = imports.get(session, caller.tenant, import_id, change=True)
        if row.state == ImportState.RECEIVING:
            imports.start_check(row)
            audit.record(session, caller, "complete_import", row.id)
            session.flush()
        return ImportView.of(row)


@router.delete("/{import_id}", responses=ERRORS)
def delete_import(services: CurrentServices, caller: Auth, import_id: ImportId) -> ImportView:
    """Delete an import and the parts that were sent. The dataset of a finished import is kept."""
    with services.sessions.begin() as session:
        row = imports.get(session, caller.tenant, import_id, change=True)
        view, upload = ImportView.of(row), row.upload
        session.delete(row)
        audit.record(session, caller, "delete_import", view.id)
    if upload is not None:
        services.storage.abort_upload(imports.key(view.id), upload)
        services.storage.delete([imports.key(view.id)])
    return view


def _resume(services: Services, caller: Caller, body: ImportRequest) -> ImportView | None:
    """Return the unfinished import with the same name, size and `resume_key`, or None.

    The import gets the `invalid_sample_skip_percentage` of this request. After its upload is complete, the percentage
    cannot change: the import is then returned only if the request has the same percentage.
    """
    if body.resume_key is None or body.bytes is None:
        return None
    with services.sessions.begin() as session:
        name = clean_name(body.name or "")
        row = imports.find_unfinished(session, caller.tenant, name, body.bytes, body.resume_key)
        if row is None:
            return None
        same = row.skip_percentage == body.invalid_sample_skip_percentage
        if not same and row.state == ImportState.CHECKING:
            return None
        if not same:
            row.skip_percentage = body.invalid_sample_skip_percentage
            audit.record(session, caller, "create_import", row.id)
        view, upload, state = ImportView.of(row), row.upload, row.state
    return None if state == ImportState.RECEIVING and upload and _is_gone(services, caller, view.id, upload) else view


def _is_gone(services: Services, caller: Caller, import_id: str, upload: str) -> bool:
    """Return whether the storage no longer has the parts, for example after a restore. The import has then failed."""
    key = imports.key(import_id)
    if services.storage.has_upload(key, upload) or services.storage.modified(key) is not None:
        return False
    with services.sessions.begin() as session:
        row = imports.get(session, caller.tenant, import_id, change=True)
        if row.state == ImportState.RECEIVING:
            imports.fail(row, ProblemError(Code.UNAVAILABLE, "The storage no longer has the parts that were sent."))
    return True


def _begin(services: Services, caller: Caller, body: ImportRequest) -> ImportView:
    """Begin an import.

    Raises INVALID_REQUEST if the source is not allowed or the file is too large, and LIMIT_REACHED if the tenant has
    too many unfinished imports or its storage is full.
    """
    settings = services.settings
    if body.source is not None:
        default_name = sources.require_allowed(body.source, settings.dataset_buckets)
    elif body.bytes is not None and body.bytes > settings.max_dataset_bytes:
        way_out = "Split the file, or ask the operator to raise SEFT_MAX_DATASET_BYTES."
        flaw = Flaw("bytes", f"must be at most {settings.max_dataset_bytes}", str(body.bytes), way_out)
        detail = f"A file must have at most {settings.max_dataset_bytes} bytes; `bytes` is {body.bytes}. {way_out}"
        raise ProblemError(Code.INVALID_REQUEST, detail, (flaw,))
    else:
        default_name = ""
    row = Import(
        id=ids.new("imp"),
        tenant=caller.tenant,
        name=clean_name(body.name or default_name),
        source=body.source,
        bytes=body.bytes,
        resume_key=body.resume_key,
        skip_percentage=body.invalid_sample_skip_percentage,
    )
    if body.source is not None:
        imports.start_check(row)
        return _add(services, caller, row)
    upload = services.storage.begin_upload(imports.key(row.id))
    row.state, row.upload = ImportState.RECEIVING, upload
    try:
        return _add(services, caller, row)
    except Exception:
        services.storage.abort_upload(imports.key(row.id), upload)
        raise


def _add(services: Services, caller: Caller, row: Import) -> ImportView:
    """Add the row of a new import. Raises LIMIT_REACHED as `_begin` does."""
    with services.sessions.begin() as session:
        fairness.require_storage_quota(session, caller.tenant, services.settings.tenant_bytes, more=row.bytes or 1)
        imports.require_import_quota(session, caller.tenant)
        session.add(row)
        session.flush()
        audit.record(session, caller, "create_import", row.id)
        return ImportView.of(row)


def _join(services: Services, caller: Caller, row: Import) -> None:
    """Join the parts into one object. If the storage has lost all of them, the import has failed.

    Raises CONFLICT if a part is missing or has the wrong length.
    """
    assert row.bytes is not None
    assert row.upload is not None
    key, count = imports.key(row.id), imports.part_count(row.bytes)
    stored = services.storage.parts(key, row.upload)
    if not stored and _is_gone(services, caller, row.id, row.upload):
        return
    lengths = {number: imports.part_length(row.bytes, number) for number in range(1, count + 1)}
    missing = [number for number, length in lengths.items() if number not in stored or stored[number].bytes != length]
    # The object exists if another request has joined the parts in the meantime.
    if missing and services.storage.modified(key) is None:
        numbers = ", ".join(map(str, missing[:10])) + ("…" if len(missing) > 10 else "")
        way_out = f"Get the links of these parts with GET /imports/{row.id}/parts. Send each part with PUT to its link."
        flaw = Flaw(
            "parts", "must all be received completely", f"incomplete or missing for the numbers {numbers}", way_out
        )
        raise ProblemError(Code.CONFLICT, f"{len(missing)} of {count} parts are missing or incomplete.", (flaw,))
    if not missing:
        services.storage.finish_upload(key, row.upload, {number: stored[number] for number in lengths})
