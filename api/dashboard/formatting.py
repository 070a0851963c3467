"""Format values for the dashboard's pages: sizes, percentages, perplexities, times and summaries of jobs."""

import math
import re
from collections.abc import Mapping, Sequence

from api.schemas.jobs import JobDetail, JobView, ReasonView
from core.jobs.jobs import MAX_POSITION
from core.spec_parts import RepairMethod
from core.states import Reason
from core.tables import Job
from seft.config import PruneSchedule, Variant, trains_all

BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
COUNT_UNITS = ("", "k", "M", "B", "T")
WAITING_REASONS: dict[str, str] = {Reason.NOT_STARTED: "not started yet", Reason.ASKED: "paused on request"}
BYTES = re.compile(r"\b([\d,]+) bytes\b")
IN_TURN = "in_turn"
"""Code of the reason "other jobs run first": the job waits for nothing else."""
SCORES = ("dense", "pruned", "repaired")


def size(count: float) -> str:
    """Format bytes in decimal units: 1.5 GB."""
    return _with_unit(count, BYTE_UNITS)


def short_count(count: float) -> str:
    """Format a number of weights in short form, as model names do: 135 M."""
    return _with_unit(count, COUNT_UNITS)


def percent(fraction: float) -> str:
    """Format a fraction as a percentage with three significant digits at most."""
    return f"{100 * fraction:.3g} %"


def perplexity(value: float) -> str:
    """Format a perplexity with three significant digits, or as a whole number from 1000 to a million."""
    if 999.5 <= value < 1e6:
        return count(value)
    return f"{value:.3g}".replace("e+0", "e").replace("e+", "e")


def duration(seconds: float) -> str:
    """Format a duration in its two largest units: 3 h 01 min."""
    whole = int(seconds)
    if whole < 60:
        return "under 0.1 s" if seconds < 0.1 else f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def rough_duration(seconds: float) -> str:
    """Format an estimated duration. The value is rounded, so that the page does not change every second."""
    minutes = math.ceil(seconds / 60)
    if minutes <= 1:
        return "about a minute"
    return f"about {minutes} min" if minutes < 60 else f"about {duration(600 * math.ceil(minutes / 10))}"


def sentence(text: str) -> str:
    """Capitalise the first letter of a message, unless the message starts with a field name such as `repair.steps`."""
    return text[:1].upper() + text[1:] if text.partition(" ")[0].isalpha() else text


def count(number: float) -> str:
    """Format a whole number with its digits in groups of three."""
    return f"{number:,.0f}".replace(",", "\u202f")


def listed(names: Sequence[str]) -> str:
    """List names in a sentence: `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def hosts(workers: Sequence[str]) -> str:
    """List the host names of these workers without duplicates."""
    return ", ".join(dict.fromkeys(name.partition(":")[0] for name in workers))


def short_name(model: str) -> str:
    """Return a model's name without its owner: `gpt2` for `openai/gpt2`."""
    return model.rstrip("/").rpartition("/")[2] or model


def job_title(job: JobView) -> str:
    """Return the name of a job to show on pages: its `suffix` if it has one, else the name of its model."""
    return job.spec["suffix"] or short_name(job.spec["model"])


def target_sparsity(job: JobView) -> str:
    """Return the sparsity that the job's request asks for. With 0, the job keeps the zeros of its model."""
    sparsity = job.spec["sparsity"]
    return percent(sparsity) if sparsity else "zeros kept"


def only_prunes(job: JobView) -> bool:
    """Return whether the job trains nothing."""
    return bool(job.spec["repair"]["method"] == RepairMethod.NONE)


def requested_steps(job: JobView) -> int:
    """Return the number of training steps that the job's request asks for. It is 0 for a job that only prunes."""
    return 0 if only_prunes(job) else int(job.spec["repair"]["steps"])


def run_seconds(job: Job) -> float | None:
    """Return how long a job has run, without its pauses. Returns None if it has not run, or for less than a heartbeat.

    Jobs of older software have only the times of their start and end.
    """
    if not job.run_seconds and job.started_at and job.finished_at:
        return (job.finished_at - job.started_at).total_seconds()
    return job.run_seconds or None


def is_gradual(job: JobView) -> bool:
    """Return whether the sparsity of the job's model rises during the training, so that no pruned model is scored."""
    return bool(job.spec["prune"].get("schedule") == PruneSchedule.GRADUAL)


def score_names(job: JobView) -> list[str]:
    """Return the names of the models that the job scores."""
    missing = {"pruned"} if is_gradual(job) else {"repaired"} if only_prunes(job) else set()
    return [name for name in SCORES if name not in missing]


def can_recover(job: JobView) -> bool:
    """Return whether the job scores all three models, so that its pages show how much of the loss was recovered."""
    return len(score_names(job)) == len(SCORES)


def has_events(job: JobView) -> bool:
    """Return whether the training of the job changes which weights are trained, or which are zero."""
    repair = job.spec["repair"]
    whole = trains_all(repair["density"], repair["method"], repair.get("variant", Variant.IMPROVED))
    fixed = whole and not is_gradual(job) and not repair.get("swap_tokens")
    return bool(repair["method"] == "seft" and not fixed)


def recovered_fraction(scores: Mapping[str, float]) -> float | None:
    """Return how much of the quality lost by pruning the repair has recovered, as a fraction of log-perplexity.

    Returns None if a perplexity is missing or if pruning lost nothing.
    """
    if not all(scores.get(name, 0) > 0 for name in SCORES) or scores["pruned"] <= scores["dense"]:
        return None
    dense, pruned, repaired = (math.log(scores[name]) for name in SCORES)
    return (pruned - repaired) / (pruned - dense)


def lost_nothing(scores: Mapping[str, float]) -> bool:
    """Return whether the pruned model is as good as the dense one, so that there is no loss to recover."""
    return scores.get("pruned", 0) > 0 and scores["pruned"] <= scores.get("dense", 0)


def job_summary(job: JobView) -> list[str]:
    """Summarise a job: model, sparsity, perplexities, and how much of the loss was recovered."""
    parts = [short_name(job.spec["model"]), target_sparsity(job)]
    if job.spec["pattern"] != "unstructured":
        parts.append(job.spec["pattern"])
    known = [perplexity(job.scores[name]) for name in SCORES if name in job.scores]
    if known:
        parts.append(f"perplexity {' → '.join(known)}")
    recovered = recovered_fraction(job.scores)
    if recovered is not None:
        parts.append(f"{100 * recovered:.0f} % of the loss recovered" if recovered >= 0 else "worse after the repair")
    return parts


def waiting_reason(job: JobDetail) -> str:
    """Return why a job does not run now. Returns an empty text if the job is not waiting."""
    if job.queue_position is not None:
        number = f"{job.queue_position}{' or later' if job.queue_position >= MAX_POSITION else ''}"
        position = "next in the queue" if job.queue_position == 1 else f"number {number} in the queue"
        return position if job.reason is None or job.reason.code == IN_TURN else f"{position}. {_message(job.reason)}"
    if job.reason is None:
        return ""
    return WAITING_REASONS.get(job.reason.code) or _message(job.reason)


def _message(reason: ReasonView) -> str:
    """Return the message of a reason with its numbers of bytes in larger units."""
    return BYTES.sub(lambda number: size(int(number[1].replace(",", ""))), reason.message)


def _with_unit(count: float, units: Sequence[str]) -> str:
    power = min(int(math.log10(count) // 3), len(units) - 1) if count >= 1 else 0
    if round(count / 1000**power) == 1000 and power + 1 < len(units):
        power += 1
    number = count / 1000**power
    text = f"{number:.0f}" if power == 0 or number >= 99.95 else f"{number:.1f}"
    return f"{text} {units[power]}".rstrip()
