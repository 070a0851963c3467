"""What can be repaired here: models under the model roots, those in the hub's cache, and results of earlier jobs.

Listing asks no server but our own: a model of the hub that is not in the cache is found by its name alone.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from core import ids, workers
from core.errors import ProblemError
from core.estimate import fitting
from core.estimate.dimensions import Dimensions
from core.models import results
from core.models.resolver import ModelResolver
from core.settings import Settings
from core.specs import JobSpec
from core.tables import Json, Worker
from seft.models.source import CONFIG, ModelSource, cached_models

DEPTH = 3
"""Names of models under a root have so many parts at most."""
USUAL = JobSpec(model="any", dataset=ids.new("file"), sparsity=0.6)
"""What it is judged by whether a model fits a worker: a job that asks for nothing special."""


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A model that a job may name, and the workers that it fits."""

    source: ModelSource
    anatomy: Dimensions
    fits_on: Sequence[str]

    def shown(self) -> Json:
        """As `api.schemas.models.ModelView` shows it."""
        return {
            "id": self.source.reference,
            "kind": "result" if results.is_result(self.source.reference) else self.source.kind,
            "revision": self.source.revision,
            "architecture": self.anatomy.architecture,
            "licence": self.source.licence,
            "context": self.anatomy.context,
            "parameters": self.anatomy.parameters,
            "target_weights": self.anatomy.targets,
            "fits_on": list(self.fits_on),
        }


class Catalogue:
    """All that a tenant may name."""

    def __init__(self, door: ModelResolver, sessions: sessionmaker[Session], settings: Settings) -> None:
        self._door, self._sessions, self._settings = door, sessions, settings

    def look(self, tenant: str, reference: str, revision: str | None) -> CatalogueEntry:
        """One model, wherever it lies; the errors of `Door.find`."""
        return self._entry(tenant, self._door.find(tenant, reference, revision), self._living())

    def page(self, tenant: str, *, after: str | None, limit: int) -> tuple[list[CatalogueEntry], bool]:
        """Up to `limit` models behind the one named `after`, and whether there are more.

        First those that are everybody's, by name, then the tenant's own results, newest first. What cannot be loaded
        is left out.
        """
        living, found = self._living(), list[CatalogueEntry]()
        for reference in self._names(tenant, after, limit + 1):
            with suppress(ProblemError):
                found.append(self._entry(tenant, self._door.find(tenant, reference, None, cached=True), living))
            if len(found) > limit:
                break
        return found[:limit], len(found) > limit

    def names(self, tenant: str, most: int) -> list[str]:
        """The first of them by name alone, whether or not they can be loaded."""
        return list(islice(self._names(tenant, None, most), most))

    def _names(self, tenant: str, after: str | None, limit: int) -> Iterator[str]:
        """Results are asked for only where the others do not do."""
        if after is None or not results.is_result(after):
            names = {*cached_models(), *(name for root in self._settings.model_roots for name in _under(root))}
            yield from sorted(name for name in names if after is None or name > after)
            after = None
        with self._sessions.begin() as session:
            newest = results.page(session, tenant, after=after, limit=limit)
        yield from newest

    def _entry(self, tenant: str, source: ModelSource, living: Sequence[Worker]) -> CatalogueEntry:
        model = self._door.anatomy(tenant, source)
        return CatalogueEntry(source, model, [each.name for each in living if fitting.fit(model, USUAL, each).met])

    def _living(self) -> Sequence[Worker]:
        lately = workers.is_alive(self._settings.sweep_seconds)
        with self._sessions.begin() as session:
            return session.scalars(select(Worker).where(lately).order_by(Worker.name)).all()


def _under(root: Path) -> Iterator[str]:
    """Names of what may be models under a root: folders with a config, and GGUF files."""
    for path, folders, files in os.walk(root):
        place = Path(path).relative_to(root)
        if CONFIG in files or len(place.parts) >= DEPTH:
            folders.clear()
        if CONFIG in files and place.parts:
            yield place.as_posix()
            continue
        yield from ((place / name).as_posix() for name in files if name.endswith(".gguf"))
