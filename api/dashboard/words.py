"""How pages put things: sizes, shares, perplexities, and a job's story in one line."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from api.schemas.jobs import JobDetail, JobView
from core.states import Reason

BYTES = ("B", "kB", "MB", "GB", "TB", "PB")
WEIGHTS = ("", "k", "M", "B", "T")
WAITS: dict[str, str] = {Reason.NOT_STARTED: "waits to be started", Reason.ASKED: "paused by request"}
IN_TURN = "in_turn"
"""The reason of a job that nothing but its turn keeps from running."""
SCORES = ("dense", "pruned", "repaired")


def size(count: float) -> str:
    """Bytes, in powers of a thousand."""
    return _in_units(count, BYTES)


def many(count: float) -> str:
    """Weights, as a model's name gives them: 135 M."""
    return _in_units(count, WEIGHTS)


def percent(share: float) -> str:
    """A share; digits behind the point only where there is something to say."""
    return f"{100 * share:.3g} %"


def score(value: float) -> str:
    """A perplexity."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """A length of time, in its two largest units."""
    whole = int(seconds)
    if whole < 60:
        return "under 0.1 s" if seconds < 0.1 else f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def about(seconds: float) -> str:
    """A length of time that is a guess: coarse, so that a page with it does not change every second."""
    minutes = math.ceil(seconds / 60)
    if minutes <= 1:
        return "about a minute"
    return f"about {minutes} min" if minutes < 60 else f"about {duration(600 * math.ceil(minutes / 10))}"


def sentence(text: str) -> str:
    """A text that begins like a sentence; one that begins with a name, such as `repair.steps`, is left as it is."""
    return text[:1].upper() + text[1:] if text.partition(" ")[0].isalpha() else text


def count(number: float) -> str:
    """A whole number, in groups of three."""
    return f"{number:,.0f}".replace(",", "\u202f")


def hosts(workers: Sequence[str]) -> str:
    """Where workers of these names run, each host once."""
    return ", ".join(dict.fromkeys(name.partition(":")[0] for name in workers))


def short(model: str) -> str:
    """A model's name without its owner."""
    return model.rstrip("/").rpartition("/")[2] or model


def title(job: JobView) -> str:
    """What a person calls a job: its suffix, or else its model."""
    return job.spec["suffix"] or short(job.spec["model"])


def won_back(scores: Mapping[str, float]) -> float | None:
    """Share of the lost log-perplexity that the repair won back; None where that means nothing."""
    if not all(scores.get(name, 0) > 0 for name in SCORES) or scores["pruned"] <= scores["dense"]:
        return None
    dense, pruned, repaired = (math.log(scores[name]) for name in SCORES)
    return (pruned - repaired) / (pruned - dense)


def story(job: JobView) -> list[str]:
    """The job in a few words: what, how sparse, what it cost and what was won back."""
    parts = [short(job.spec["model"]), percent(job.spec["sparsity"])]
    if job.spec["pattern"] != "unstructured":
        parts.append(job.spec["pattern"])
    known = [score(job.scores[name]) for name in SCORES if name in job.scores]
    if known:
        parts.append(f"perplexity {' → '.join(known)}")
    share = won_back(job.scores)
    if share is not None:
        parts.append(f"{100 * share:.0f} % of the loss won back" if share >= 0 else "the repair made it worse")
    return parts


def waiting(job: JobDetail) -> str:
    """Why a job does not run; nothing where it does."""
    if job.queue_position is not None:
        place = "next to be taken" if job.queue_position == 1 else f"number {job.queue_position} in the queue"
        return place if job.reason is None or job.reason.code == IN_TURN else f"{place}. {job.reason.message}"
    if job.reason is None:
        return ""
    return WAITS.get(job.reason.code, job.reason.message)


def flat(spec: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Settings by dotted name, as text."""
    out: dict[str, str] = {}
    for name, value in spec.items():
        if isinstance(value, dict):
            out |= flat(value, f"{before}{name}.") if value else {}
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            out[before + name] = "" if value is None else shown
    return out


def _in_units(count: float, units: Sequence[str]) -> str:
    power = min(int(math.log10(count) // 3), len(units) - 1) if count >= 1 else 0
    number = count / 1000**power
    told = f"{number:.0f}" if power == 0 or number >= 100 else f"{number:.1f}"
    return f"{told} {units[power]}".rstrip()
