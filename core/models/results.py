"""Results of earlier jobs as models, to be repaired again or pruned further. Such a model goes by its job's id."""

import json
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from core import ids
from core.infra.storage import Storage
from core.tables import Checkpoint, Job, Json
from seft.models.shapes import Shapes, parse_shapes
from seft.models.source import CARD, CONFIG, Kind, ModelSource, card_licence

WEIGHTS = ".safetensors"


def is_result(reference: str) -> bool:
    """Whether a model's name can be that of a job."""
    return ids.is_id("job", reference)


def find(session: Session, tenant: str, job_id: str) -> Checkpoint | None:
    """What the tenant's job has published, as long as it is kept."""
    mine = (Checkpoint.job_id == job_id, Job.tenant == tenant)
    query = select(Checkpoint).join(Job, Job.id == Checkpoint.job_id).where(*mine)
    return session.scalars(query.order_by(Checkpoint.id.desc()).limit(1)).first()


def page(session: Session, tenant: str, *, after: str | None, limit: int) -> Sequence[str]:
    """Up to `limit` of the tenant's jobs that have published something, newest first, those made before `after`."""
    query = select(Job.id).join(Checkpoint, Job.id == Checkpoint.job_id).where(Job.tenant == tenant)
    if after is not None:
        query = query.where(Job.id < after)
    return session.scalars(query.order_by(Job.id.desc()).limit(limit)).all()


def files(checkpoint: Checkpoint) -> list[Json]:
    """Its files with the keys of their objects."""
    return [{**file, "key": checkpoint.prefix + file["name"]} for file in checkpoint.files]


def source(storage: Storage, checkpoint: Checkpoint) -> ModelSource:
    """The model; its revision is the hash of its manifest."""
    config, card = (storage.read(checkpoint.prefix + name) for name in (CONFIG, CARD))
    licence = card_licence(card.decode(errors="replace"))
    return ModelSource(checkpoint.job_id, Kind.FOLDER, None, checkpoint.sha256, json.loads(config), licence)


def download_tokenizer(storage: Storage, checkpoint: Checkpoint) -> Path:
    """A folder here with all of its files but the weights, named by their hash: they are fetched once."""
    folder = Path(tempfile.gettempdir()) / "seft-results" / checkpoint.sha256
    if not folder.exists():
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent))
        for file in files(checkpoint):
            if not file["name"].endswith(WEIGHTS):
                storage.download(file["key"], made / file["name"])
        with suppress(OSError):  # somebody else has fetched them meanwhile
            made.rename(folder)
    return folder


def shapes(storage: Storage, checkpoint: Checkpoint) -> Shapes:
    """Of its tensors, from the headers of its files."""
    found: dict[str, tuple[int, ...]] = {}
    for file in files(checkpoint):
        if file["name"].endswith(WEIGHTS):
            found |= parse_shapes(lambda start, size, key=file["key"]: storage.part(key, start, size))  # type: ignore[misc]
    return found
