"""SEFT: few weights are trained, and which ones evolves, pruned zeros included, while the budget of nonzeros holds.

Method: Xiao et al., "Leave it to the Specialist", arXiv 2505.24037. What an event decides is in `seft.repair.evolve`.
"""

import math

from seft.repair import schedule
from seft.repair.fixed_mask import FixedMask
from seft.report import Evolved


class Evolving(FixedMask):
    """Active sets with windows and events."""

    def open(self, step: int, /) -> None:
        """The windows of the next event, where it is near."""
        event = schedule.next_event(self.config, step)
        if event is None or event - step >= schedule.WINDOW:
            return
        for linear in self.linears.values():
            count = schedule.dropped(self.config, event, len(linear.active))
            if linear.window is None and count:
                linear.open_window(count)

    def evolve(self, step: int, /) -> Evolved | None:
        """Drop, grow and adapt in every linear, where an event follows this step."""
        if schedule.next_event(self.config, step) != step:
            return None
        pieces = math.ceil(self.config.batch_tokens / self.config.sequence_tokens / self.config.micro_batch)
        changes = [
            linear.evolve(schedule.dropped(self.config, step, len(linear.active)), pieces)
            for linear in self.linears.values()
        ]
        return Evolved(step, *map(sum, zip(*changes, strict=True)))
