"""Schedules as functions of the step (the first is 1): learning rate, topology events, and the text of each step.

A topology event changes which weights are trained. The first event, called the opening, replaces all active positions,
because the first ones are an arbitrary sample of the nonzeros. It undoes their weight changes, but uses the gradients
of the steps before it. SpIEL's published code, on which SEFT is built, has this event too (github.com/AlanAnsell/peft,
commit 73b455b). [ours] In the variant `improved` it comes after step 1 instead of 5, and a gradient
window has 2 steps instead of 5.
"""

import functools
import math

import torch
from jaxtyping import Int
from torch import Tensor

from seft.config import DropDecay, RateSchedule, RepairConfig, Variant
from seft.seeds import generator

OPENING = {Variant.IMPROVED: 1, Variant.PUBLISHED: 5}
"""Step after which the opening event runs. A later event would find better positions, but leave less time to train
them."""

WINDOW = {Variant.IMPROVED: 2, Variant.PUBLISHED: 5}
"""Number of steps before a topology event whose gradients decide it (the gradient window)."""


def learning_rate(config: RepairConfig, step: int) -> float:
    """Return the learning rate of a step: a linear warm-up, then the schedule.

    The first step after warm-up has the peak.
    """
    if step <= config.warmup_steps:
        return config.peak_rate() * step / config.warmup_steps
    left = 1 - (step - 1 - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    match config.schedule:
        case RateSchedule.LINEAR:
            return config.peak_rate() * left
        case RateSchedule.COSINE:
            return config.peak_rate() * (1 - math.cos(math.pi * left)) / 2
        case RateSchedule.CONSTANT:
            return config.peak_rate()


def next_event(config: RepairConfig, step: int) -> int | None:
    """Return the step of the first topology event at or after `step`, or None if there is none.

    The last `settle` fraction of the steps has no events.
    """
    last = min(config.last_event, config.steps - 1)
    opening = OPENING[config.variant]
    event = opening if step <= opening else -(-step // config.update_interval) * config.update_interval
    return event if event <= last else None


def window_steps(config: RepairConfig, event: int) -> int:
    """Return the number of steps whose gradients decide an event.

    It is at most `WINDOW`. Only steps after the previous event count.
    """
    first = max(1, event - WINDOW[config.variant] + 1)
    return sum(next_event(config, step) == event for step in range(first, event + 1))


def drop_count(config: RepairConfig, event: int, active: int) -> int:
    """Return the number of active positions that an event replaces.

    All are replaced at the opening event, and a falling fraction at later events.
    """
    return round((1.0 if event == OPENING[config.variant] else _drop_rate(config, event / config.steps)) * active)


def _drop_rate(config: RepairConfig, progress: float) -> float:
    match config.drop_decay:
        case DropDecay.LINEAR:
            return config.drop_rate * (1 - progress)
        case DropDecay.COSINE:
            return config.drop_rate * (1 + math.cos(math.pi * progress)) / 2


def rows_of_step(config: RepairConfig, rows: int, step: int) -> Int[Tensor, "batch"]:
    """Return the numbers of the text windows that a step reads, of `rows` windows in all.

    Each epoch reads each window once, in a new random order.
    """
    first, last = (number * config.windows - config.retained_before(number + 1) for number in (step - 1, step))
    return _rows("epoch", config.seed, rows, range(first, last))


def retained_rows_of_step(config: RepairConfig, rows: int, step: int) -> Int[Tensor, "batch"]:
    """Return the numbers of the windows of retained text that a step reads, in the same way as `rows_of_step`."""
    places = range(config.retained_before(step), config.retained_before(step + 1))
    return _rows("retained epoch", config.seed, rows, places)


def _rows(name: str, seed: int, rows: int, places: range) -> Int[Tensor, "batch"]:
    chosen = [_order(f"{name} {place // rows}", seed, rows)[place % rows] for place in places]
    return torch.stack(chosen) if chosen else torch.zeros(0, dtype=torch.int64)


@functools.lru_cache(maxsize=4)
def _order(name: str, seed: int, rows: int) -> Int[Tensor, "rows"]:
    return torch.randperm(rows, generator=generator(seed, name))
