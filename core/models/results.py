"""Use the checkpoints of earlier jobs as models, to repair them again or to prune them further.

The name of such a model is the id of its job.
"""

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
    """Return whether a model's name has the form of a job id."""
    return ids.is_id("job", reference)


def find(session: Session, tenant: str, job_id: str) -> Checkpoint | None:
    """Return the newest stored checkpoint of the tenant's job, or None."""
    mine = (Checkpoint.job_id == job_id, Job.tenant == tenant)
    query = select(Checkpoint).join(Job, Job.id == Checkpoint.job_id).where(*mine)
    return session.scalars(query.order_by(Checkpoint.id.desc()).limit(1)).first()


def page(session: Session, tenant: str, *, after: str | None, limit: int) -> Sequence[str]:
    """Return the ids of up to `limit` of the tenant's jobs that have a checkpoint, older than `after`, newest first."""
    query = select(Job.id).join(Checkpoint, Job.id == Checkpoint.job_id).where(Job.tenant == tenant)
    if after is not None:
        query = query.where(Job.id < after)
    return session.scalars(query.order_by(Job.id.desc()).limit(limit)).all()


def files(checkpoint: Checkpoint) -> list[Json]:
    """Return the files of a checkpoint, each with the key of its object."""
    return [{**file, "key": checkpoint.prefix + file["name"]} for file in checkpoint.files]


def source(storage: Storage, checkpoint: Checkpoint) -> ModelSource:
    """Return the checkpoint as a model. The model's revision is the hash of the checkpoint's manifest."""
    config, card = (storage.read(checkpoint.prefix + name) for name in (CONFIG, CARD))
    licence = card_licence(card.decode(errors="replace"))
    return ModelSource(checkpoint.job_id, Kind.FOLDER, None, checkpoint.sha256, json.loads(config), licence)


def download_tokenizer(storage: Storage, checkpoint: Checkpoint) -> Path:
    """Download all files except the weights to a local folder, and return the folder.

    The folder is a cache: its name is the hash of the checkpoint.
    """
    folder = Path(tempfile.gettempdir()) / "seft-results" / checkpoint.sha256
    if not folder.exists():
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent))
        for file in files(checkpoint):
            if not file["name"].endswith(WEIGHTS):
                storage.download(file["key"], partial / file["name"])
        with suppress(OSError):  # another thread or process has downloaded them in the meantime
            partial.rename(folder)
    return folder


def shapes(storage: Storage, checkpoint: Checkpoint) -> Shapes:
    """Read the shapes of the checkpoint's tensors. Only the headers of its files are downloaded."""
    merged: dict[str, tuple[int, ...]] = {}
    for file in files(checkpoint):
        if file["name"].endswith(WEIGHTS):
            merged |= parse_shapes(lambda start, size, key=file["key"]: storage.read_range(key, start, size))  # type: ignore[misc]
    return merged
