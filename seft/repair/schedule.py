"""What happens at which step, counted from 1: the rate, the events, the windows of text. Pure functions of the step.

[ours] Training opens with an event of its own. The active set starts as an arbitrary one among the nonzeros; after the
first step it is replaced whole by positions drawn in proportion to their gradients. What that step changed is undone,
what it saw is not.
"""

import functools
import math

import torch
from jaxtyping import Int
from torch import Tensor

from seft.config import DropDecay, RateSchedule, RepairConfig, RepairMethod
from seft.seeds import generator

OPENING = 1
"""The step that the opening event follows. Looking longer finds better positions and leaves less time to train them."""

WINDOW = 2
"""Steps before an event whose gradients decide it."""

RATES = {
    RepairMethod.SEFT: 3e-2,
    RepairMethod.FIXED_MASK: 3e-2,
    RepairMethod.MASKED_FULL: 1e-3,
    RepairMethod.MASKED_LORA: 1e-2,
    RepairMethod.SPP: 3e-2,
    RepairMethod.LORA_REPRUNE: 1e-2,
}
"""Peak rates at 0.5 % density; how far each has been tried is in docs/log.md."""

UNSCALED = {RepairMethod.SPP, RepairMethod.MASKED_FULL}
"""Methods whose steps move a linear no further the more values they train. SPP's rank says how many rows share a
vector, and each row has one number at every rank; `masked_full` trains everything."""


def learning_rate(config: RepairConfig, step: int) -> float:
    """The rate of a step: a linear warm-up, then the schedule, whose first step after the warm-up is at the peak."""
    if step <= config.warmup_steps:
        return peak(config) * step / config.warmup_steps
    left = 1 - (step - 1 - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    match config.schedule:
        case RateSchedule.LINEAR:
            return peak(config) * left
        case RateSchedule.COSINE:
            return peak(config) * (1 - math.cos(math.pi * left)) / 2
        case RateSchedule.CONSTANT:
            return peak(config)


def peak(config: RepairConfig) -> float:
    """The rate asked for; "auto" takes the method's, and lowers it with the root of the density above 0.5 %."""
    if config.learning_rate != "auto":
        return config.learning_rate
    rate = RATES[config.method]
    return rate if config.method in UNSCALED else rate * min(1.0, math.sqrt(0.005 / config.density))


def next_event(config: RepairConfig, step: int) -> int | None:
    """The first event at or after a step; there is none in the share of steps left to settle, nor after the last."""
    last = min(config.steps - math.ceil(config.steps * config.settle), config.steps - 1)
    event = OPENING if step <= OPENING else -(-step // config.update_interval) * config.update_interval
    return event if event <= last else None


def watched(config: RepairConfig, event: int) -> int:
    """Steps whose gradients decide an event: at most `WINDOW`, and none that belongs to the event before it."""
    return sum(next_event(config, step) == event for step in range(max(1, event - WINDOW + 1), event + 1))


def dropped(config: RepairConfig, event: int, active: int) -> int:
    """Active positions that an event replaces: all at the opening, later a share that falls to none."""
    return round((1.0 if event == OPENING else _drop_rate(config, event / config.steps)) * active)


def _drop_rate(config: RepairConfig, passed: float) -> float:
    match config.drop_decay:
        case DropDecay.LINEAR:
            return config.drop_rate * (1 - passed)
        case DropDecay.COSINE:
            return config.drop_rate * (1 + math.cos(math.pi * passed)) / 2


def rows_of_step(config: RepairConfig, rows: int, step: int) -> Int[Tensor, "batch"]:
    """Which of `rows` windows of text a step reads. An epoch reads each once, in an order of its own."""
    batch = config.batch_tokens // config.sequence_tokens
    places = (divmod(place, rows) for place in range((step - 1) * batch, step * batch))
    return torch.stack([_order(config.seed, epoch, rows)[rank] for epoch, rank in places])


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, rows: int) -> Int[Tensor, "rows"]:
    return torch.randperm(rows, generator=generator(seed, f"epoch {epoch}"))
