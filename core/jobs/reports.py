"""Read the events, metrics and checkpoints of a job. The caller must check that the job belongs to the tenant."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import BigInteger, ColumnElement, Double, Select, cast, column, false, func, select, true
from sqlalchemy.dialects.postgresql import JSONB, aggregate_order_by
from sqlalchemy.orm import Session

from core.infra.database import page_of
from core.states import TOPOLOGY_EVOLVED
from core.tables import Checkpoint, JobEvent, JobMetric, Json

CHANGES = ("dropped", "grown", "reactivated", "pruned")
"""Names of the counts in the data of an event `topology.evolved`."""
LAYERS = "layers"
"""Name of the counts per layer in the data of such an event. No other part of an event can be large."""

PAGE_LAYERS, STREAMED_ROWS = 50_000, 10
"""`PAGE_LAYERS`: maximum number of layers with counts in one page of events. `STREAMED_ROWS`: events that are read from
Postgres at once.

A model of many experts has more than 10,000 layers, so a page of its events could have hundreds of megabytes.
"""


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """Several rows of metrics merged into one: their last step, their newest attempt, and the average of each value."""

    step: int
    attempt: int
    values: Json


@dataclass(frozen=True, slots=True)
class Evolution:
    """Several consecutive events `topology.evolved` merged into one.

    `step` is their last step, and `sparsity` is the sparsity after that step. `sums` are the sums of all counts, and
    `layers` are the sums of one count per layer. Events that were undone count 0. The sparsity is None if older
    software wrote the event.
    """

    step: int
    sums: dict[str, int]
    layers: dict[str, int]
    sparsity: float | None


def events(session: Session, job_id: str, *, after: int, limit: int) -> tuple[Sequence[JobEvent], bool]:
    """Return up to `limit` events with an id greater than `after`, oldest first.

    The second value is true if more events follow. A page with more than one event has counts of at most
    `PAGE_LAYERS` layers.
    """
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.id > after).order_by(JobEvent.id)
    rows, layers = list[JobEvent](), 0
    with session.scalars(query.limit(limit + 1).execution_options(yield_per=STREAMED_ROWS)) as stream:
        for row in stream:
            layers += len(row.data.get(LAYERS, ()))
            if len(rows) == limit or (rows and layers > PAGE_LAYERS):
                return rows, True
            rows.append(row)
    return rows, False


def latest_events(session: Session, job_id: str, *, limit: int) -> Sequence[JobEvent]:
    """Return the last `limit` events, newest first, without their counts per layer.

    The objects do not belong to the session, so changes to them are not written.
    """
    data = JobEvent.data.op("-")(LAYERS).label("data")
    query = select(JobEvent.id, JobEvent.job_id, JobEvent.attempt, JobEvent.type, data, JobEvent.created_at)
    rows = session.execute(query.where(JobEvent.job_id == job_id).order_by(JobEvent.id.desc()).limit(limit))
    return [JobEvent(**row) for row in rows.mappings()]


def events_of(session: Session, job_id: str, type: str, *, limit: int) -> Sequence[JobEvent]:  # noqa: A002
    """Return the last `limit` events of one type, oldest first."""
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.type == type).order_by(JobEvent.id.desc())
    return session.scalars(query.limit(limit)).all()[::-1]


def metrics(session: Session, job_id: str, *, after_step: int, limit: int) -> tuple[Sequence[JobMetric], bool]:
    """Return up to `limit` rows of metrics with steps greater than `after_step`, in order.

    The second value is true if more rows follow.
    """
    query = select(JobMetric).where(JobMetric.job_id == job_id, JobMetric.step > after_step).order_by(JobMetric.step)
    return page_of(session, query, limit)


def downsample_metrics(session: Session, job_id: str, *, after_step: int, points: int) -> Sequence[MetricPoint]:
    """Divide all steps after `after_step` into at most `points` spans of equal length. Return one point per span."""
    selected = (JobMetric.job_id == job_id, JobMetric.step > after_step)
    bounds = (
        select(func.min(JobMetric.step).label("low"), func.max(JobMetric.step).label("high")).where(*selected).cte()
    )
    span = func.width_bucket(JobMetric.step, bounds.c.low, bounds.c.high + 1, points).label("span")
    rows = select(span, JobMetric.step, JobMetric.attempt, JobMetric.values).join(bounds, true()).where(*selected)
    return _points(session, rows)


def span_length(session: Session, job_id: str, points: int) -> int:
    """Return the smallest power of two for which `points` spans of this length (in steps) cover all steps of the job.

    A power of two seldom changes while the job trains, so a page can keep the points that it already has.
    """
    high = session.scalar(select(func.max(JobMetric.step)).where(JobMetric.job_id == job_id)) or 0
    return 1 << max(0, math.ceil(high / points) - 1).bit_length()


def attempt_at(session: Session, job_id: str, step: int) -> int:
    """Return the number of the newest attempt that trained a step up to `step`, or 0 if none did.

    Only for a `step` that the job has reached. After that step there can be metrics of a lost attempt.
    """
    query = select(JobMetric.attempt).where(JobMetric.job_id == job_id, JobMetric.step <= step)
    return session.scalar(query.order_by(JobMetric.step.desc()).limit(1)) or 0


def downsample_metrics_by_span(
    session: Session, job_id: str, *, after_step: int, last_step: int, length: int
) -> Sequence[MetricPoint]:
    """Return one point per span of `length` steps, up to `last_step`. The spans are counted from step 1.

    The values of a complete span do not change any more, unless a later attempt repeats its steps.
    """
    selected = (JobMetric.job_id == job_id, JobMetric.step > after_step, JobMetric.step <= last_step)
    span = ((JobMetric.step - 1) // length).label("span")
    return _points(session, select(span, JobMetric.step, JobMetric.attempt, JobMetric.values).where(*selected))


def _points(session: Session, spans: Select[int, int, int, Json]) -> Sequence[MetricPoint]:
    """Return one point per span, in the order of steps."""
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
    return [MetricPoint(*row) for row in session.execute(query)]


def evolution(session: Session, job_id: str, *, layer_count: str, max_runs: int) -> list[Evolution]:
    """Return the events `topology.evolved` in order, merged into at most `max_runs` groups of equal length.

    `layer_count` is the name in `CHANGES` of the count to return per layer.
    """
    run = func.ntile(max_runs).over(order_by=JobEvent.id).label("run")
    selected = (JobEvent.job_id == job_id, JobEvent.type == TOPOLOGY_EVOLVED)
    rows = select(run, JobEvent.id, JobEvent.data).where(*selected).cte()
    kept = ~func.coalesce(rows.c.data["undone"].as_boolean(), false())
    layer = func.jsonb_each(rows.c.data[LAYERS]).table_valued(column("key"), column("value", JSONB))
    by_layer = select(rows.c.run, layer.c.key, _total(layer.c.value, layer_count)).join(layer, true()).where(kept)
    layers: dict[int, dict[str, int]] = defaultdict(dict)
    for number, name, count in session.execute(by_layer.group_by(rows.c.run, layer.c.key)):
        layers[number][name] = count
    sparsities = func.array_agg(aggregate_order_by(rows.c.data["sparsity"].as_float(), rows.c.id))
    sums = [func.coalesce(_total(rows.c.data, name, kept), 0) for name in CHANGES]
    by_run = select(rows.c.run, func.max(rows.c.data["step"].as_integer()), sparsities, *sums)
    runs = session.execute(by_run.group_by(rows.c.run).order_by(rows.c.run))
    return [
        Evolution(step, dict(zip(CHANGES, counts, strict=True)), layers[number], sparsity[-1])
        for number, step, sparsity, *counts in runs
    ]


def _total(data: ColumnElement[Json], name: str, *conditions: ColumnElement[bool]) -> ColumnElement[int]:
    total = func.sum(cast(data[name].astext, BigInteger))
    return cast(total.filter(*conditions) if conditions else total, BigInteger)


def checkpoints(session: Session, job_id: str) -> Sequence[Checkpoint]:
    """Return the job's published checkpoints, oldest first."""
    return session.scalars(select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.id)).all()
