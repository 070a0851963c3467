"""SEFT: few weights are trained, and which ones evolves, pruned zeros included, while the budget of nonzeros holds.

Method: Xiao et al., "Leave it to the Specialist", arXiv 2505.24037. What an event decides is in `seft.repair.evolve`.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from seft.errors import ConfigError
from seft.repair import schedule
from seft.repair.fixed_mask import FixedMask
from seft.repair.method import Work
from seft.repair.processes import processes
from seft.report import Evolved


class Evolving(FixedMask):
    """Active sets with windows and events.

    Several processes look at a linear's window together. In models with experts they cannot, because a router may send
    an expert tokens in one of them and none in another: ConfigError.
    """

    def __init__(self, work: Work) -> None:
        experts = any(target.expert for target in work.targets.values())
        if processes() > 1 and experts:
            way_out = "Repair it in one process, or by a method without events."
            raise ConfigError("model", "must have no experts for seft in several processes", "experts", way_out)
        super().__init__(work)

    def open(self, step: int, /) -> None:
        """The windows of the next event, where it is near."""
        event = schedule.next_event(self.config, step)
        if event is None or event - step >= schedule.WINDOW:
            return
        for linear in self.linears.values():
            count = schedule.dropped(self.config, event, len(linear.active))
            if linear.window is None and count:
                linear.open_window(count, event)

    def update(self, gradients: Sequence[Tensor], rate: float, scale: float) -> None:
        """One optimizer step in each linear; its window is told of clipping, which it does not see."""
        super().update(gradients, rate, scale)
        for linear in self.linears.values():
            if linear.window is not None:
                linear.window.scales.append(scale)

    def evolve(self, step: int, /) -> Evolved | None:
        """Drop, grow and adapt in every linear, where an event follows this step."""
        if schedule.next_event(self.config, step) != step:
            return None
        steps = schedule.watched(self.config, step)
        pieces = math.ceil(self.config.batch_tokens / self.config.sequence_tokens / self.config.micro_batch)
        changes = {
            name: linear.evolve(schedule.dropped(self.config, step, len(linear.active)), steps, pieces)
            for name, linear in self.linears.items()
        }
        return Evolved.of(step, changes)
