"""SEFT: train few weights and change which ones at events, including pruned zeros, within the budget of nonzeros.

Method: Xiao et al., "Leave it to the Specialist", arXiv 2505.24037. The decisions of an event are in
`seft.repair.evolve`.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from seft.errors import ConfigError
from seft.repair import schedule
from seft.repair.fixed_mask import FixedMask
from seft.repair.method import Work
from seft.repair.processes import process_count
from seft.report import Evolved


class SEFT(FixedMask):
    """Active sets that change at events, decided by windows of gradients.

    Several processes fill a linear's window together. This is not possible in models with experts, because an expert
    may get tokens in one process and none in another. Raises ConfigError in that case.
    """

    def __init__(self, work: Work) -> None:
        experts = any(target.expert for target in work.targets.values())
        if process_count() > 1 and experts:
            way_out = "Repair it in one process, or choose another method than seft."
            rule = "must have no experts if seft runs in several processes"
            raise ConfigError("model", rule, "a model with experts", way_out)
        super().__init__(work)

    def before_step(self, step: int, /) -> None:
        """Open the windows of the next event if it is at most `schedule.WINDOW` steps away."""
        event = schedule.next_event(self.config, step)
        if event is None or event - step >= schedule.WINDOW:
            return
        for linear in self.linears.values():
            count = schedule.drop_count(self.config, event, len(linear.active))
            if linear.window is None and count:
                linear.open_window(count, event)

    def update(self, gradients: Sequence[Tensor], rate: float, scale: float) -> None:
        """Take one optimizer step in each linear. Pass `scale` to open windows, which see unclipped gradients."""
        super().update(gradients, rate, scale)
        for linear in self.linears.values():
            if linear.window is not None:
                linear.window.scales.append(scale)

    def evolve(self, step: int, /) -> Evolved | None:
        """Drop, grow and adapt in every linear if an event follows this step. Returns None if not."""
        if schedule.next_event(self.config, step) != step:
            return None
        steps = schedule.window_steps(self.config, step)
        pieces = math.ceil(self.config.batch_tokens / self.config.sequence_tokens / self.config.micro_batch)
        changes = {
            name: linear.evolve(schedule.drop_count(self.config, step, len(linear.active)), steps, pieces)
            for name, linear in self.linears.items()
        }
        return Evolved.of(step, changes)
