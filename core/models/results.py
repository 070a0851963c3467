"""Use the checkpoints of earlier jobs as models, to repair them again or to prune them further.

The name of such a model is the id of its job.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import select, type_coerce
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from core import ids
from core.infra.storage import Storage
from core.tables import Checkpoint, Job, Json
from seft.config import OutputFormat, format_of
from seft.models.limits import MAX_FILE_BYTES
from seft.models.model_files import (
    CARD,
    CHAT_TEMPLATE,
    CONFIG,
    TEXT_FILES,
    TOKENIZER_CONFIG,
    card_licence,
    is_weights,
    require_size,
)
from seft.models.safetensors_header import Header, merge, read_header
from seft.models.shapes import Shapes
from seft.models.source import Kind, ModelSource

_IS_DENSE = type_coerce(Checkpoint.files, JSONB).contains([{"name": CONFIG}])
"""SQL condition that a checkpoint has the dense model, which every other job can use."""


def is_result(reference: str) -> bool:
    """Return whether a model's name has the form of a job id."""
    return ids.is_id("job", reference)


def find(session: Session, tenant: str, job_id: str, *, keep: bool = False) -> Checkpoint | None:
    """Return the newest stored checkpoint of the tenant's job with a dense model, or None.

    With `keep`, it is neither expired nor deleted until the transaction ends.
    """
    mine = (Checkpoint.job_id == job_id, Job.tenant == tenant, _IS_DENSE)
    query = select(Checkpoint).join(Job, Job.id == Checkpoint.job_id).where(*mine)
    query = query.with_for_update(read=True, key_share=True, of=Checkpoint) if keep else query
    return session.scalars(query.order_by(Checkpoint.id.desc()).limit(1)).first()


def page(session: Session, tenant: str, *, after: str | None, limit: int) -> Sequence[str]:
    """Return the ids of up to `limit` jobs of the tenant with a dense checkpoint, older than `after`, newest first."""
    query = select(Job.id).join(Checkpoint, Job.id == Checkpoint.job_id).where(Job.tenant == tenant, _IS_DENSE)
    if after is not None:
        query = query.where(Job.id < after)
    return session.scalars(query.order_by(Job.id.desc()).limit(limit)).all()


def files(checkpoint: Checkpoint) -> list[Json]:
    """Return the files of a checkpoint, except files of formats other than `dense`. Each has the key of its object."""
    return [
        {**file, "key": checkpoint.prefix + file["name"]}
        for file in checkpoint.files
        if format_of(file["name"]) in (None, OutputFormat.DENSE)
    ]


def files_of(session: Session, tenant: str, reference: str) -> list[Json]:
    """Return the files of a model that is the result of a job. The list is empty for any other model.

    It is also empty if that result was deleted. The training process then reports that the model is missing.
    """
    result = find(session, tenant, reference) if is_result(reference) else None
    return files(result) if result else []


def source(storage: Storage, checkpoint: Checkpoint) -> ModelSource:
    """Return the checkpoint as a model. The model's revision is the hash of the checkpoint's manifest."""
    config, card = (storage.read(checkpoint.prefix + name, MAX_FILE_BYTES) for name in (CONFIG, CARD))
    licence = card_licence(card.decode(errors="replace"))
    return ModelSource(
        checkpoint.job_id,
        Kind.FOLDER,
        None,
        checkpoint.sha256,
        json.loads(config),
        licence,
        has_chat_template=_has_chat_template(storage, checkpoint),
    )


def _has_chat_template(storage: Storage, checkpoint: Checkpoint) -> bool:
    names = {file["name"] for file in files(checkpoint)}
    if CHAT_TEMPLATE in names or TOKENIZER_CONFIG not in names:
        return CHAT_TEMPLATE in names
    # A model with several chat templates has them in this file.
    tokenizer = json.loads(storage.read(checkpoint.prefix + TOKENIZER_CONFIG, MAX_FILE_BYTES))
    return bool(tokenizer.get("chat_template"))


def download_tokenizer(storage: Storage, checkpoint: Checkpoint, folder: Path, max_bytes: int) -> None:
    """Download the files of the tokenizer to a folder that belongs to the caller.

    Raises SourceError if they have more than `max_bytes` bytes together.
    """
    needed = [file for file in files(checkpoint) if file["name"] in TEXT_FILES]
    require_size(checkpoint.job_id, sum(file["size"] for file in needed), max_bytes)
    for file in needed:
        storage.download(file["key"], folder / file["name"])


def shapes(storage: Storage, checkpoint: Checkpoint) -> Shapes:
    """Read the shapes of the checkpoint's tensors. Only the headers of its files are downloaded.

    Raises ValueError if a header is malformed.
    """
    return merge(_header(storage, file) for file in files(checkpoint) if is_weights(file["name"]))


def _header(storage: Storage, file: Json) -> Header:
    return read_header(lambda start, size: storage.read_range(file["key"], start, size), file["size"])
