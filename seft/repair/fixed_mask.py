"""Train few weights of each linear, drawn once and spread evenly over its nonzeros. Zeros stay zero.

This is SEFT without topology events, as a baseline. `seft.repair.seft_method` adds the events. The method `masked_full`
is the same with all nonzeros: full fine-tuning under the mask. Its optimizer state grows with the nonzeros.
"""

from collections.abc import Sequence

from torch import Tensor

from seft.repair.flat import FlatOptimizer
from seft.repair.in_place import InPlaceMethod
from seft.repair.linear import RepairedLinear
from seft.repair.method import Work
from seft.repair.published import WINDOWS
from seft.seeds import generator


class FixedMask(InPlaceMethod):
    """Trains the same active positions of each linear during the whole training."""

    def __init__(self, work: Work) -> None:
        config, pattern = work.config, work.pattern
        self.linears = {
            name: RepairedLinear(
                target, config.trained_fraction, generator(config.seed, name), pattern, WINDOWS[config.variant]
            )
            for name, target in work.targets.items()
        }
        super().__init__(work, self.linears)
        self._optimizer = FlatOptimizer(list(self.linears.values()))

    def before_step(self, _: int, /) -> None:
        """Free the buffers of the optimizer that an event or a resumption has made outdated."""
        self._optimizer.gather()

    def update(self, gradients: Sequence[Tensor], rate: float, _: float) -> None:
        """Take one optimizer step in all linears."""
        self._optimizer.update(gradients, rate, self.config.weight_decay)
