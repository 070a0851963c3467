"""What a job's events say to a person."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from api.dashboard import words
from api.schemas.reports import EventView

Data = dict[str, Any]


class Mood(StrEnum):
    """How an event is shown."""

    PLAIN = "plain"
    GOOD = "good"
    ODD = "odd"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Line:
    """An event in words."""

    text: str
    more: str
    mood: Mood
    at: datetime
    attempt: int


def line(event: EventView) -> Line:
    """An event in words; one that is not known here by its own name."""
    say, mood = SAID.get(event.type, (_unknown(event.type), Mood.PLAIN))
    text, more = say(event.data)
    return Line(text, more, mood, event.created_at, event.attempt)


def _plain(text: str) -> Callable[[Data], tuple[str, str]]:
    return lambda _: (text, "")


def _unknown(name: str) -> Callable[[Data], tuple[str, str]]:
    text = name.replace(".", " ").replace("_", " ").capitalize()
    return lambda data: (text, ", ".join(f"{key} {value}" for key, value in data.items()))


def _error(text: str) -> Callable[[Data], tuple[str, str]]:
    return lambda data: (text, words.sentence(str(data.get("error", {}).get("message", ""))))


def _reason(text: str) -> Callable[[Data], tuple[str, str]]:
    return lambda data: (text, words.sentence(str(data.get("reason", {}).get("message", ""))))


def _evolved(data: Data) -> tuple[str, str]:
    count = {name: words.count(data.get(name, 0)) for name in ("dropped", "grown", "reactivated", "pruned")}
    changes = "{dropped} dropped, {grown} grown, {reactivated} of them zeros, {pruned} pruned".format(**count)
    return f"Topology evolved after step {data.get('step')}", changes


SAID: dict[str, tuple[Callable[[Data], tuple[str, str]], Mood]] = {
    "job.created": (_plain("Job made"), Mood.PLAIN),
    "job.claimed": (lambda data: (f"Taken by {data.get('worker')}", ""), Mood.PLAIN),
    "job.released": (_plain("Given back to the queue"), Mood.ODD),
    "job.lost": (lambda data: (f"Worker {data.get('worker')} fell silent; back in the queue", ""), Mood.BAD),
    "job.retried": (_error("Attempt failed; will be tried again"), Mood.BAD),
    "job.pausing": (_plain("Pause asked for; the worker is saving the state"), Mood.ODD),
    "job.unpaused": (_plain("Pause taken back"), Mood.PLAIN),
    "job.paused": (_reason("Paused"), Mood.ODD),
    "job.started": (_plain("Started"), Mood.PLAIN),
    "job.resumed": (_plain("Resumed"), Mood.PLAIN),
    "job.stopping": (_plain("Told to stop training and publish"), Mood.ODD),
    "job.succeeded": (_plain("Checkpoint published"), Mood.GOOD),
    "job.failed": (_error("Failed"), Mood.BAD),
    "job.cancelled": (_plain("Cancelled"), Mood.ODD),
    "checkpoint.expired": (_plain("Checkpoint deleted; its time was over"), Mood.ODD),
    "phase.began": (lambda data: (str(data.get("phase", "")).capitalize(), ""), Mood.PLAIN),
    "topology.evolved": (_evolved, Mood.PLAIN),
    "state.missing": (_plain("The saved state is gone from the storage; training begins anew"), Mood.BAD),
    "state.refused": (_plain("The saved state is of other software; training begins anew"), Mood.BAD),
    "state.saved": (lambda data: (f"State saved at step {data.get('step')}", ""), Mood.PLAIN),
    "attempt.resumed": (lambda data: (f"Going on from step {data.get('step')}", ""), Mood.PLAIN),
}
