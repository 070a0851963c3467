"""Figures of the whole service for Prometheus, read from the rows when somebody asks.

Read from the database and not counted in a process, they are right whichever process is asked and however often one was
restarted. None has a label by job, tenant or worker: their number is bounded.
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
from core.states import Phase, Status
from core.tables import Job, JobEvent, Worker
from core.totals import Kind, Sum

MEDIA_TYPE = "text/plain"
EXAMPLE = 'seft_jobs{status="queued"} 3.0\n'
LATELY = timedelta(hours=1)


def render(session: Session, lease_seconds: float) -> bytes:
    """All of them, in the text format of Prometheus."""
    registry = CollectorRegistry()
    registry.register(ServiceCollector(session, lease_seconds))
    return generate_latest(registry)


class ServiceCollector(Collector):
    """Of what the session sees now."""

    def __init__(self, session: Session, lease_seconds: float) -> None:
        self._session, self._lease = session, timedelta(seconds=lease_seconds)

    def collect(self) -> Iterator[Metric]:
        """What is now, as gauges; what has been since the service was set up, as sums."""
        yield self._counts()
        yield self._events()
        waited = func.now() - func.min(Job.updated_at)
        yield self._seconds("seft_oldest_waiting", "Since the oldest queued job came into the queue", waited, "queued")
        beat = func.now() - func.min(Job.lease_expires_at) + self._lease
        yield self._seconds("seft_heartbeat_age", "Since the most silent running job was heard of", beat, "running")
        yield GaugeMetricFamily(
            "seft_workers", "Workers seen within a day", value=self._scalar(select(func.count()).select_from(Worker))
        )
        yield self._sums("seft_phase_seconds", "Phases gone through to their end", "phase", Sum.PHASE_SECONDS, Phase)
        ended = [status for status in Status if status.final]
        yield self._sums("seft_job_seconds", "Ended jobs, from their start", "status", Sum.JOB_SECONDS, ended)
        yield self._uploads()

    def _counts(self) -> GaugeMetricFamily:
        jobs = GaugeMetricFamily("seft_jobs", "Jobs that have not ended, by status", labels=["status"])
        alive = [status for status in Status if not status.final]
        query = select(Job.status, func.count()).where(Job.status.in_(alive)).group_by(Job.status)
        counts = dict(self._session.execute(query).all())
        for status in alive:
            jobs.add_metric([status], counts.get(status, 0))
        return jobs

    def _events(self) -> GaugeMetricFamily:
        """Retries, losses and pauses show here."""
        events = GaugeMetricFamily("seft_events_last_hour", "Events of jobs in the last hour", labels=["type"])
        lately = JobEvent.created_at > func.now() - LATELY
        query = select(JobEvent.type, func.count()).where(lately).group_by(JobEvent.type)
        for kind, count in self._session.execute(query):
            events.add_metric([kind], count)
        return events

    def _sums(self, name: str, told: str, label: str, which: Sum, labels: Iterable[str]) -> SummaryMetricFamily:
        """Each label from the start, so that the first increase is one."""
        summary = SummaryMetricFamily(name, told, labels=[label])
        known = totals.read(self._session, which)
        for each in labels:
            summary.add_metric([each], *known.get(each, (0, 0.0)))
        return summary

    def _uploads(self) -> CounterMetricFamily:
        uploads = CounterMetricFamily("seft_uploaded_bytes", "Bytes put into object storage", labels=["kind"])
        known = totals.read(self._session, Sum.UPLOADED_BYTES)
        for kind in Kind:
            _, total = known.get(kind, (0, 0.0))
            uploads.add_metric([kind], total)
        return uploads

    def _seconds(self, name: str, told: str, duration: ColumnElement[Any], status: str) -> GaugeMetricFamily:
        query = select(func.extract("epoch", duration)).where(Job.status == status)
        return GaugeMetricFamily(f"{name}_seconds", told, value=self._scalar(query))

    def _scalar(self, query: Select[Any]) -> float:
        return float(self._session.scalar(query) or 0)
