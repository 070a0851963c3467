"""Convert the events of a job to the texts that its page shows."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from api.dashboard import formatting
from api.schemas.reports import EventView

Data = dict[str, Any]


class Severity(StrEnum):
    """Importance of an event. The value is the CSS class of the event's line on the page."""

    INFO = "info"
    SUCCESS = "success"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class EventLine:
    """One line of the event list."""

    text: str
    details: str
    severity: Severity
    at: datetime
    attempt: int


def event_line(event: EventView) -> EventLine:
    """Describe an event. For an unknown type, show the type and the data as they are."""
    describe, severity = DESCRIPTIONS.get(event.type, (_generic(event.type), Severity.INFO))
    text, details = describe(event.data)
    return EventLine(text, details, severity, event.created_at, event.attempt)


def _fixed(text: str) -> Callable[[Data], tuple[str, str]]:
    return lambda _: (text, "")


def _generic(event_type: str) -> Callable[[Data], tuple[str, str]]:
    text = event_type.replace(".", " ").replace("_", " ").capitalize()
    return lambda data: (text, ", ".join(f"{key} {value}" for key, value in data.items()))


def _with_error(text: str) -> Callable[[Data], tuple[str, str]]:
    return lambda data: (text, formatting.sentence(str(data.get("error", {}).get("message", ""))))


def _with_reason(text: str) -> Callable[[Data], tuple[str, str]]:
    return lambda data: (text, formatting.sentence(str(data.get("reason", {}).get("message", ""))))


def _evolved(data: Data) -> tuple[str, str]:
    counts = {name: formatting.count(data.get(name, 0)) for name in ("dropped", "grown", "reactivated", "pruned")}
    details = "{dropped} dropped, {grown} grown ({reactivated} from zero), {pruned} pruned".format(**counts)
    if "sparsity" in data:
        details += f"; {formatting.percent(data['sparsity'])} zeros"
    undone = ", and the change was undone" if data.get("undone") else ""
    return f"Topology evolved after step {data.get('step')}{undone}", details


DESCRIPTIONS: dict[str, tuple[Callable[[Data], tuple[str, str]], Severity]] = {
    "job.created": (_fixed("Job created"), Severity.INFO),
    "job.claimed": (lambda data: (f"Claimed by {data.get('worker')}", ""), Severity.INFO),
    "job.released": (_fixed("Returned to the queue"), Severity.WARNING),
    "job.lost": (lambda data: (f"Worker {data.get('worker')} stopped responding; job requeued", ""), Severity.ERROR),
    "job.retried": (_with_error("Attempt failed; the job will be retried"), Severity.ERROR),
    "job.pausing": (_fixed("Pause requested; the worker is saving the state"), Severity.WARNING),
    "job.unpaused": (_fixed("Pause cancelled"), Severity.INFO),
    "job.paused": (_with_reason("Paused"), Severity.WARNING),
    "job.started": (_fixed("Started"), Severity.INFO),
    "job.resumed": (_fixed("Resumed"), Severity.INFO),
    "job.stopping": (_fixed("Stop requested; training ends and the model is published"), Severity.WARNING),
    "job.succeeded": (_fixed("Checkpoint published"), Severity.SUCCESS),
    "job.failed": (_with_error("Failed"), Severity.ERROR),
    "job.cancelled": (_fixed("Cancelled"), Severity.WARNING),
    "job.pushed": (lambda data: (f"Pushed to {data.get('repository')}", ""), Severity.SUCCESS),
    "job.push_failed": (_with_error("Push to a repository failed; the checkpoint is kept"), Severity.ERROR),
    "checkpoint.expired": (_fixed("Checkpoint expired and was deleted"), Severity.WARNING),
    "phase.began": (lambda data: (str(data.get("phase", "")).capitalize(), ""), Severity.INFO),
    "topology.evolved": (_evolved, Severity.INFO),
    "state.missing": (_fixed("Saved state is missing from the storage; the job restarts"), Severity.ERROR),
    "state.refused": (_fixed("Saved state is from an incompatible version; training restarts"), Severity.ERROR),
    "state.saved": (lambda data: (f"State saved at step {data.get('step')}", ""), Severity.INFO),
    "attempt.hung": (lambda data: ("The training process hung", str(data.get("message", ""))), Severity.ERROR),
    "attempt.resumed": (lambda data: (f"Training resumed from step {data.get('step')}", ""), Severity.INFO),
}
"""Per event type: a function from the event's data to (text, details), and the severity of the event."""
