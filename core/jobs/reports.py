"""What a job has to tell: events, metrics, checkpoints. The caller has made sure that the job is the tenant's."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import BigInteger, ColumnElement, Double, Select, cast, column, func, select, true
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from core.states import TOPOLOGY_EVOLVED
from core.tables import Checkpoint, JobEvent, JobMetric, Json

CHANGES = ("dropped", "grown", "reactivated", "pruned")
"""What an event of the topology counts."""
LAYERS = "layers"
"""Where it counts them for each layer: the one part of any event that is long."""


@dataclass(frozen=True, slots=True)
class Thinned:
    """What several rows of metrics say together."""

    step: int
    attempt: int
    values: Json


@dataclass(frozen=True, slots=True)
class Evolution:
    """A run of neighbouring events of the topology: the step of the last, the sums, and one count for each layer."""

    step: int
    sums: dict[str, int]
    layers: dict[str, int]


def events(session: Session, job_id: str, *, after: int, limit: int) -> tuple[Sequence[JobEvent], bool]:
    """Up to `limit` events behind the event `after`, oldest first; and whether there are more."""
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.id > after).order_by(JobEvent.id)
    rows = session.scalars(query.limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit


def latest_events(session: Session, job_id: str, *, limit: int) -> Sequence[JobEvent]:
    """The last `limit` events, the newest first, without what they tell of each layer; detached from the session."""
    short = JobEvent.data.op("-")(LAYERS).label("data")
    query = select(JobEvent.id, JobEvent.job_id, JobEvent.attempt, JobEvent.type, short, JobEvent.created_at)
    rows = session.execute(query.where(JobEvent.job_id == job_id).order_by(JobEvent.id.desc()).limit(limit))
    return [JobEvent(**row) for row in rows.mappings()]


def events_of(session: Session, job_id: str, type: str, *, limit: int) -> Sequence[JobEvent]:  # noqa: A002
    """The last `limit` events of one type, oldest first."""
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.type == type).order_by(JobEvent.id.desc())
    return session.scalars(query.limit(limit)).all()[::-1]


def metrics(session: Session, job_id: str, *, after_step: int, limit: int) -> tuple[Sequence[JobMetric], bool]:
    """Up to `limit` rows of steps behind `after_step`, in order; and whether there are more."""
    query = select(JobMetric).where(JobMetric.job_id == job_id, JobMetric.step > after_step).order_by(JobMetric.step)
    rows = session.scalars(query.limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit


def metrics_thinned(session: Session, job_id: str, *, after_step: int, points: int) -> Sequence[Thinned]:
    """At most `points` rows that cover all steps behind `after_step`: the steps are cut into spans of one length.

    A row stands for a span: its last step, the newest attempt, and of each value the mean of what was measured.
    """
    mine = (JobMetric.job_id == job_id, JobMetric.step > after_step)
    bounds = select(func.min(JobMetric.step).label("low"), func.max(JobMetric.step).label("high")).where(*mine).cte()
    span = func.width_bucket(JobMetric.step, bounds.c.low, bounds.c.high + 1, points).label("span")
    rows = select(span, JobMetric.step, JobMetric.attempt, JobMetric.values).join(bounds, true()).where(*mine)
    return _thinned(session, rows)


def span_length(session: Session, job_id: str, points: int) -> int:
    """The least power of two so that `points` spans of so many steps hold all: it seldom changes while steps come."""
    high = session.scalar(select(func.max(JobMetric.step)).where(JobMetric.job_id == job_id)) or 0
    return 1 << max(0, math.ceil(high / points) - 1).bit_length()


def began(session: Session, job_id: str) -> int:
    """The attempt that took the first step: another one from the moment on that training begins anew. 0: none has."""
    first = select(JobMetric.attempt).where(JobMetric.job_id == job_id).order_by(JobMetric.step).limit(1)
    return session.scalar(first) or 0


def metrics_in_spans(session: Session, job_id: str, *, after_step: int, length: int) -> Sequence[Thinned]:
    """As `metrics_thinned`, in spans of so many steps counted from the first: those that are full stay as they are."""
    mine = (JobMetric.job_id == job_id, JobMetric.step > after_step)
    span = ((JobMetric.step - 1) // length).label("span")
    return _thinned(session, select(span, JobMetric.step, JobMetric.attempt, JobMetric.values).where(*mine))


def _thinned(session: Session, spans: Select[int, int, int, Json]) -> Sequence[Thinned]:
    """A row for each span, by step."""
    rows = spans.cte()
    entry = func.jsonb_each_text(rows.c["values"]).table_valued("key", "value")
    means = (
        select(rows.c.span, entry.c.key, func.avg(entry.c.value.cast(Double)).label("mean"))
        .join(entry, true())
        .group_by(rows.c.span, entry.c.key)
        .cte()
    )
    values = select(means.c.span, func.jsonb_object_agg(means.c.key, means.c.mean).label("values"))
    values_of = values.group_by(means.c.span).cte()
    ends = select(rows.c.span, func.max(rows.c.step).label("step"), func.max(rows.c.attempt).label("attempt"))
    ends_of = ends.group_by(rows.c.span).cte()
    query = (
        select(ends_of.c.step, ends_of.c.attempt, func.coalesce(values_of.c["values"], cast({}, JSONB)))
        .join(values_of, values_of.c.span == ends_of.c.span, isouter=True)
        .order_by(ends_of.c.step)
    )
    return [Thinned(*row) for row in session.execute(query)]


def evolution(session: Session, job_id: str, *, of: str, most: int) -> list[Evolution]:
    """The events of the topology in order, as at most `most` runs of one length; `of` is the count told by layer."""
    run = func.ntile(most).over(order_by=JobEvent.id).label("run")
    mine = (JobEvent.job_id == job_id, JobEvent.type == TOPOLOGY_EVOLVED)
    told = select(run, JobEvent.data).where(*mine).cte()
    layer = func.jsonb_each(told.c.data[LAYERS]).table_valued(column("key"), column("value", JSONB))
    by_layer = select(told.c.run, layer.c.key, _total(layer.c.value, of)).join(layer, true())
    layers: dict[int, dict[str, int]] = defaultdict(dict)
    for number, name, count in session.execute(by_layer.group_by(told.c.run, layer.c.key)):
        layers[number][name] = count
    sums = [_total(told.c.data, name) for name in CHANGES]
    whole = select(told.c.run, func.max(told.c.data["step"].as_integer()), *sums)
    rows = session.execute(whole.group_by(told.c.run).order_by(told.c.run))
    return [Evolution(step, dict(zip(CHANGES, counts, strict=True)), layers[number]) for number, step, *counts in rows]


def _total(told: ColumnElement[Json], name: str) -> ColumnElement[int]:
    return cast(func.sum(cast(told[name].astext, BigInteger)), BigInteger)


def checkpoints(session: Session, job_id: str) -> Sequence[Checkpoint]:
    """The job's published checkpoints, oldest first."""
    return session.scalars(select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.id)).all()
