"""Learning rates that `learning_rate: auto` chooses."""

import math

from seft.config.methods import RepairMethod, Variant

RATES = {
    RepairMethod.SEFT: 3e-2,
    RepairMethod.FIXED_MASK: 3e-2,
    RepairMethod.MASKED_FULL: 1e-3,
    RepairMethod.MASKED_LORA: 1e-2,
    RepairMethod.SPP: 3e-2,
    RepairMethod.LORA_REPRUNE: 1e-2,
}
"""Peak learning rates if 0.5 % of the weights are trained. docs/log.md has the measurements."""

ALL_RATE, ALL_RATE_STEPS, ALL_RATE_EXPONENT = 5e-4, 100, 0.32
"""Peak learning rate of `density: all` in a training of this number of steps. It falls with this power of the number.

The exponent comes from Bjorck et al. 2024, Scaling Optimal LR Across Token Horizons (arXiv 2409.19913), where all
trainings have batches of the same size.
"""
LOWEST_RATE, HIGHEST_RATE = 1.25e-4, 1e-3
"""Limits of the rate that follows from the number of steps. Lower rates were not measured (docs/log.md)."""
PUBLISHED_RATE = 3e-3
"""Peak rate of `seft` as published. It trains the positions with the largest gradients, with steps of full size."""

RATED_WIDTH, RATED_DENSITY = 576, 0.005
"""Largest hidden size and density for which these rates hold. They were measured with SmolLM2-135M."""
LOW_RANK = {RepairMethod.MASKED_LORA, RepairMethod.LORA_REPRUNE, RepairMethod.SPP}
"""Methods that do not train individual weights. Their rates do not depend on the width."""

UNSCALED = {RepairMethod.SPP, RepairMethod.MASKED_FULL}
"""Methods whose learning rate does not depend on the density. A higher density does not make the step of a linear
larger. In SPP each row has one number at every rank, and the rank only sets how many rows share a vector."""


def auto_rate(method: RepairMethod, variant: Variant, width: int, *, density: float | None, steps: int) -> float:
    """Return the peak rate for a model with this hidden size. `density` is None if all nonzeros are trained in place.

    It is the rate of the method, divided by the square root of the ratio of the density to 0.5 %, if the density is
    larger (not for `UNSCALED`), and by the ratio of the width to 576, if the model is wider (not for `LOW_RANK`). If
    all nonzeros are trained in place, it depends on the number of steps instead of the density. A step changes an
    output by the rate times the number of its inputs, so the best rate is inversely proportional to the width (Yang et
    al. 2022, Tensor Programs V, arXiv 2203.03466; docs/log.md has our measurements).
    """
    narrower = 1.0 if method in LOW_RANK else min(1.0, RATED_WIDTH / width)
    if density is None:
        rate = ALL_RATE * math.pow(ALL_RATE_STEPS / steps, ALL_RATE_EXPONENT)
        return min(max(LOWEST_RATE, rate), HIGHEST_RATE) * narrower
    rate = PUBLISHED_RATE if variant is Variant.PUBLISHED else RATES[method]
    denser = 1.0 if method in UNSCALED else min(1.0, math.sqrt(RATED_DENSITY / density))
    return rate * denser * narrower
