"""All nonzeros trained: full fine-tuning under the mask that pruning left. Its state grows with the nonzeros."""

from dataclasses import replace

from seft.repair.fixed_mask import FixedMask
from seft.repair.method import Work


class MaskedFull(FixedMask):
    """An active set of all nonzeros in each linear, whatever the density."""

    def __init__(self, work: Work) -> None:
        super().__init__(replace(work, config=replace(work.config, density=1.0)))
