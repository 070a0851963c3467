"""The list of models that jobs can use: local models, models in the hub cache, and results of earlier jobs.

Local models are in the folders of SEFT_MODEL_ROOTS. No request to the hub is made for the list. A hub model that is
not in the cache is not listed, but can be looked up by name.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from core import ids, workers
from core.errors import ProblemError
from core.estimate import fitting
from core.models import results
from core.models.resolver import ModelResolver
from core.settings import Settings
from core.specs import JobSpec
from core.tables import Worker
from seft.models.dimensions import Dimensions
from seft.models.source import ModelSource
from seft.storable import printable

TYPICAL_JOB = JobSpec(model="any", dataset=ids.new("file"), sparsity=0.6)
"""A job with default settings. A model fits a worker if this job with the model does."""


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A model that a job can use, and the names of the workers whose memory it fits into."""

    source: ModelSource
    dimensions: Dimensions
    fits_on: Sequence[str]


@dataclass(frozen=True, slots=True)
class SkippedModel:
    """A model that is not in the list because it cannot be used, and the reason."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class CataloguePage:
    """A part of the list of models, and the models that are left out of this part.

    `next` is the last model of this part, after which the next part begins. It is None if no more models follow.
    """

    entries: Sequence[CatalogueEntry]
    skipped: Sequence[SkippedModel]
    next: str | None


class Catalogue:
    """Lists and looks up the models that a tenant can use."""

    def __init__(self, resolver: ModelResolver, sessions: sessionmaker[Session], settings: Settings) -> None:
        self._resolver, self._sessions, self._settings = resolver, sessions, settings

    def get(self, tenant: str, reference: str, revision: str | None) -> CatalogueEntry:
        """Look up one model, on the hub too. Raises the errors of `ModelResolver.find`."""
        return self._entry(tenant, self._resolver.find(tenant, reference, revision), self._living_workers())

    def page(self, tenant: str, *, after: str | None, limit: int) -> CataloguePage:
        """Return up to `limit` models that follow the model `after` in the list.

        Models of all tenants come first, sorted by name; then the tenant's own results, newest first. A model that
        cannot be used is skipped, so that it does not hide the others. A page ends after `limit` skipped models too,
        because each costs a read of its files.
        """
        living, entries, skipped = self._living_workers(), list[CatalogueEntry](), list[SkippedModel]()
        last = ""
        for reference in self._names(tenant, after, limit + 1):
            # A page cannot end with a name that is not valid text, because no request could name it as `after`.
            if max(len(entries), len(skipped)) >= limit and last == printable(last):
                return CataloguePage(entries, skipped, next=last)
            last = reference
            try:
                entries.append(self._entry(tenant, self._resolver.find(tenant, reference, None, cached=True), living))
            except ProblemError as error:
                skipped.append(SkippedModel(printable(reference), error.message))
        return CataloguePage(entries, skipped, next=None)

    def names(self, tenant: str, limit: int) -> list[str]:
        """Return the first `limit` names of the list. Does not check that the models can be loaded."""
        return [name for name in islice(self._names(tenant, None, limit), limit) if name == printable(name)]

    def _names(self, tenant: str, after: str | None, limit: int) -> Iterator[str]:
        """Yield the names in the order of the list.

        The results are read from the database only after all names of shared models.
        """
        if after is None or not results.is_result(after):
            names = self._resolver.shared_names()
            yield from sorted(name for name in names if after is None or name > after)
            after = None
        while True:
            with self._sessions.begin() as session:
                newest = results.page(session, tenant, after=after, limit=limit)
            yield from newest
            if len(newest) < limit:
                return
            after = newest[-1]

    def _entry(self, tenant: str, source: ModelSource, living: Sequence[Worker]) -> CatalogueEntry:
        model = self._resolver.dimensions(tenant, source)
        job = TYPICAL_JOB.within(model.context)
        fits = [fitting.fit(model, job.resolve_dtype(bfloat16=each.bfloat16), each).fits for each in living]
        return CatalogueEntry(source, model, [worker.name for worker, fit in zip(living, fits, strict=True) if fit])

    def _living_workers(self) -> Sequence[Worker]:
        alive = workers.is_alive(self._settings.sweep_seconds)
        with self._sessions.begin() as session:
            return session.scalars(select(Worker).where(alive).order_by(Worker.name)).all()
