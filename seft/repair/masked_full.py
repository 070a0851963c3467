"""Full fine-tuning under the pruning mask: all nonzeros are trained. The optimizer state grows with their number."""

from dataclasses import replace

from seft.repair.fixed_mask import FixedMask
from seft.repair.method import Work


class MaskedFull(FixedMask):
    """Trains all nonzeros of each linear. Ignores the setting `density`."""

    def __init__(self, work: Work) -> None:
        super().__init__(replace(work, config=replace(work.config, density=1.0)))
