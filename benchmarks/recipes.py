"""Ways to prune and repair a model that the benchmarks compare, and the learning rates to try for each."""

from dataclasses import dataclass, replace
from typing import Literal

from seft.config import (
    Allocation,
    Compare,
    PruneConfig,
    PruneMethod,
    PruneSchedule,
    RepairConfig,
    RepairMethod,
    Variant,
)

BATCH, LENGTH = 2, 512
WANDA = PruneConfig(0.6, PruneMethod.WANDA, allocation=Allocation.UNIFORM, samples=48, tokens=512)
ADMM = replace(WANDA, method=PruneMethod.ADMM)
CURVATURE = replace(ADMM, allocation=Allocation.CURVATURE)
"""What a job gets by default without an N:M pattern."""
GRADUAL = PruneConfig(0.6, schedule=PruneSchedule.GRADUAL, allocation=Allocation.UNIFORM, compare=Compare.LAYER)
WRITTEN = 1 << 16
"""Largest number of tokens that the dense model writes. It was the default of a job when the studies ran."""
RATES_OF_ALL = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is pruned and repaired, and the learning rates to try."""

    method: RepairMethod
    rates: tuple[float, ...]
    density: float | Literal["all"] = 0.005
    prune: PruneConfig | None = WANDA
    variant: Variant = Variant.IMPROVED

    def config(self, rate: float | Literal["auto"], steps: int = 100, length: int = LENGTH) -> RepairConfig:
        """Return the settings of one run. With the method seft, a topology event follows every ten steps."""
        return RepairConfig(
            steps=steps,
            method=self.method,
            variant=self.variant,
            density=self.density,
            learning_rate=rate,
            update_interval=10,
            batch_tokens=BATCH * length,
            sequence_tokens=length,
            micro_batch=BATCH,
            retain_tokens=WRITTEN,
        )


def _trains_all(prune: PruneConfig | None) -> Recipe:
    return Recipe(RepairMethod.SEFT, RATES_OF_ALL, "all", prune)


RECIPES = {
    "seft": Recipe(RepairMethod.SEFT, (3e-3, 1e-2, 3e-2, 1e-1)),
    "seft-published": Recipe(RepairMethod.SEFT, (1e-3, 3e-3, 1e-2), variant=Variant.PUBLISHED),
    "masked_lora": Recipe(RepairMethod.MASKED_LORA, (3e-3, 1e-2, 3e-2)),
    "fixed_mask": Recipe(RepairMethod.FIXED_MASK, (1e-2, 3e-2, 1e-1)),
    "masked_full": Recipe(RepairMethod.MASKED_FULL, (3e-4, 1e-3, 3e-3)),
    "spp": Recipe(RepairMethod.SPP, (1e-2, 3e-2, 1e-1)),
    "lora_reprune": Recipe(RepairMethod.LORA_REPRUNE, (3e-3, 1e-2, 3e-2)),
    "all": _trains_all(WANDA),
    "all-admm": _trains_all(ADMM),
    "all-gradual": _trains_all(GRADUAL),
    "all-gradual-model": _trains_all(replace(GRADUAL, compare=Compare.MODEL)),
    "ceiling": _trains_all(None),
}
"""Recipes by name. The recipes that begin with `all` train all nonzeros; `all` prunes with Wanda before. `ceiling`
trains the dense model in the same way."""
