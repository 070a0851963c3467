"""Prometheus metrics of the whole service. They are read from the database each time Prometheus asks for them.

They count the jobs of all tenants, so only the operator may read them. They are correct in every process and after
restarts. No metric has a label for job, tenant or worker, so the number of time series is bounded.
"""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session

from core import totals
from core.states import ENDED, UNFINISHED, Phase
from core.tables import Job, JobEvent, Worker
from core.totals import Kind, Sum

MEDIA_TYPE = "text/plain"
EXAMPLE = 'seft_jobs{status="queued"} 3.0\n'
RECENT, DAY = timedelta(hours=1), timedelta(days=1)


def render(session: Session, lease_seconds: float) -> bytes:
    """Return all metrics in the text format of Prometheus."""
    registry = CollectorRegistry()
    registry.register(ServiceCollector(session, lease_seconds))
    return generate_latest(registry)


class ServiceCollector(Collector):
    """Collects the metrics that are read through a database session."""

    def __init__(self, session: Session, lease_seconds: float) -> None:
        self._session, self._lease = session, timedelta(seconds=lease_seconds)

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics: current values as gauges, and sums since the installation as summaries and counters."""
        yield self._counts()
        yield self._events()
        waiting = func.now() - func.min(Job.updated_at)
        yield self._seconds("seft_oldest_waiting", "Time since the oldest queued job was queued", waiting, "queued")
        silence = func.now() - func.min(Job.lease_expires_at) + self._lease
        yield self._seconds(
            "seft_heartbeat_age", "Largest time since the last heartbeat of a running job", silence, "running"
        )
        yield GaugeMetricFamily(
            "seft_workers",
            "Workers that sent a heartbeat within a day",
            value=self._scalar(select(func.count()).where(Worker.seen_at > func.now() - DAY)),
        )
        yield self._sums("seft_phase_seconds", "Durations of completed phases", "phase", Sum.PHASE_SECONDS, Phase)
        yield self._sums(
            "seft_job_seconds",
            "Durations of ended jobs, from the start of the first attempt",
            "status",
            Sum.JOB_SECONDS,
            ENDED,
        )
        yield self._uploads()

    def _counts(self) -> GaugeMetricFamily:
        jobs = GaugeMetricFamily("seft_jobs", "Jobs that have not ended, by status", labels=["status"])
        query = select(Job.status, func.count()).where(Job.status.in_(UNFINISHED)).group_by(Job.status)
        counts = dict(self._session.execute(query).all())
        for status in UNFINISHED:
            jobs.add_metric([status], counts.get(status, 0))
        return jobs

    def _events(self) -> GaugeMetricFamily:
        """Return the number of recent events per type, such as retries, expired leases and pauses."""
        events = GaugeMetricFamily("seft_events_last_hour", "Events of jobs in the last hour", labels=["type"])
        recent = JobEvent.created_at > func.now() - RECENT
        query = select(JobEvent.type, func.count()).where(recent).group_by(JobEvent.type)
        for kind, count in self._session.execute(query):
            events.add_metric([kind], count)
        return events

    def _sums(self, name: str, description: str, label: str, total: Sum, labels: Iterable[str]) -> SummaryMetricFamily:
        """Return a sum as a summary with every label. A label without a count has the value 0.

        This lets Prometheus see the first increase of each label.
        """
        summary = SummaryMetricFamily(name, description, labels=[label])
        rows = totals.read(self._session, total)
        for each in labels:
            summary.add_metric([each], *rows.get(each, (0, 0.0)))
        return summary

    def _uploads(self) -> CounterMetricFamily:
        uploads = CounterMetricFamily("seft_uploaded_bytes", "Bytes put into object storage", labels=["kind"])
        rows = totals.read(self._session, Sum.UPLOADED_BYTES)
        for kind in Kind:
            _, total = rows.get(kind, (0, 0.0))
            uploads.add_metric([kind], total)
        return uploads

    def _seconds(self, name: str, description: str, duration: ColumnElement[Any], status: str) -> GaugeMetricFamily:
        query = select(func.extract("epoch", duration)).where(Job.status == status)
        return GaugeMetricFamily(f"{name}_seconds", description, value=self._scalar(query))

    def _scalar(self, query: Select[Any]) -> float:
        return float(self._session.scalar(query) or 0)
