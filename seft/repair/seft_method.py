"""The repair method SEFT: train few weights, and change at topology events which ones.

An event can also choose zeros of the pruned model. Other weights become zero then, so the number of nonzeros does not
increase. Method: Xiao et al., "Leave it to the Specialist", arXiv 2505.24037. The decisions of an event are in
`seft.repair.topology`.
"""

from collections.abc import Sequence

from torch import Tensor

from seft.repair import schedule
from seft.repair.fixed_mask import FixedMask
from seft.repair.method import Work
from seft.repair.processes import process_count
from seft.report import Evolved


class SEFT(FixedMask):
    """Trains the active positions of each linear, and replaces some of them at topology events.

    The gradients of the last steps before an event (the gradient window of a linear) decide which positions to choose.
    With several processes, all fill the same gradient windows. An expert may get tokens in one process and none in
    another, so the windows of experts are filled after the backward pass.
    """

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        for name, target in work.targets.items():
            self.linears[name].waits = target.expert and process_count() > 1

    def after_micro_batch(self) -> None:
        """Fill the gradient windows that wait for the end of the backward pass."""
        for linear in self.linears.values():
            linear.observe()

    def before_step(self, step: int, /) -> None:
        """Start to collect gradients in every linear if the step is in the gradient window of an event."""
        super().before_step(step)
        event = schedule.next_event(self.config, step)
        if event is None or event - step >= schedule.WINDOW[self.config.variant]:
            return
        for linear in self.linears.values():
            count = schedule.drop_count(self.config, event, len(linear.active))
            if linear.window is None and count:
                linear.open_window(count, event)

    def update(self, gradients: Sequence[Tensor], rate: float, scale: float) -> None:
        """Take one optimizer step in all linears.

        `scale` is stored in the open gradient windows, because they collect the gradients before clipping.
        """
        super().update(gradients, rate, scale)
        for linear in self.linears.values():
            if linear.window is not None:
                linear.window.scales.append(scale)

    def evolve(self, step: int, /) -> Evolved | None:
        """Run the topology event of this step in every linear: drop, grow, adapt. Returns None if no event is due."""
        if schedule.next_event(self.config, step) != step:
            return None
        steps = schedule.window_steps(self.config, step)
        pieces = self.config.micro_batches
        changes = {
            name: linear.evolve(schedule.drop_count(self.config, step, len(linear.active)), steps, pieces)
            for name, linear in self.linears.items()
        }
        return Evolved.of(step, changes, self.sparsity)
