"""Figures of the whole service for Prometheus, read from the rows when somebody asks.

Read from the database and not counted in a process, they are right whichever process is asked and however often one was
restarted. None has a label by job, tenant or worker: their number is bounded.
"""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session

from core.states import Status
from core.tables import Job, JobEvent, Worker

MEDIA_TYPE = "text/plain"
EXAMPLE = 'seft_jobs{status="queued"} 3.0\n'
LATELY = timedelta(hours=1)


def text(session: Session, lease_seconds: float) -> bytes:
    """All of them, in the text format of Prometheus."""
    registry = CollectorRegistry()
    registry.register(Figures(session, lease_seconds))
    return generate_latest(registry)


class Figures(Collector):
    """Of what the session sees now."""

    def __init__(self, session: Session, lease_seconds: float) -> None:
        self._session, self._lease = session, timedelta(seconds=lease_seconds)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Gauges alone: what was counted by a process would start anew with it."""
        yield self._counts()
        yield self._events()
        yield self._durations()
        waited = func.now() - func.min(Job.updated_at)
        yield self._seconds("seft_oldest_waiting", "Since the oldest queued job came into the queue", waited, "queued")
        beat = func.now() - func.min(Job.lease_expires_at) + self._lease
        yield self._seconds("seft_heartbeat_age", "Since the most silent running job was heard of", beat, "running")
        yield GaugeMetricFamily(
            "seft_workers", "Workers seen within a day", value=self._scalar(select(func.count()).select_from(Worker))
        )

    def _counts(self) -> GaugeMetricFamily:
        jobs = GaugeMetricFamily("seft_jobs", "Jobs by status", labels=["status"])
        counts = dict(self._session.execute(select(Job.status, func.count()).group_by(Job.status)).all())
        for status in Status:
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

    def _durations(self) -> GaugeMetricFamily:
        name, told = "seft_job_seconds_last_hour", "Mean seconds from start to end of the jobs that ended lately"
        seconds = func.avg(func.extract("epoch", Job.finished_at - Job.started_at))
        value = self._scalar(select(seconds).where(Job.finished_at > func.now() - LATELY))
        return GaugeMetricFamily(name, told, value=value)

    def _seconds(self, name: str, told: str, duration: ColumnElement[Any], status: str) -> GaugeMetricFamily:
        query = select(func.extract("epoch", duration)).where(Job.status == status)
        return GaugeMetricFamily(f"{name}_seconds", told, value=self._scalar(query))

    def _scalar(self, query: Select[Any]) -> float:
        return float(self._session.scalar(query) or 0)
