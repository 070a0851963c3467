"""The repair method SEFT at `density: all`: train all nonzeros in place, and let the sparsity rise while they train.

With the schedule `one_shot` the model is already pruned, and its zeros stay zero. With `gradual` it starts as it is,
dense or less sparse, and events set weights to zero until the model has the requested sparsity.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from seft.config import Compare, PruneConfig
from seft.errors import ConfigError
from seft.prune.loop import final_zeros
from seft.prune.mask import overfull_groups
from seft.repair import rise, schedule
from seft.repair.in_place import InPlaceMethod
from seft.repair.method import Work
from seft.repair.nonzeros import NonzeroLinear, Plan
from seft.repair.processes import process_count
from seft.report import Change, Evolved, Reporter

_START = "start"
"""Key of the numbers of zeros at the start in a saved state. The keys of linears contain a slash."""


class AllNonzeros(InPlaceMethod):
    """Trains all nonzeros of every linear. Raises ConfigError if the weights do not follow the pattern."""

    def __init__(self, work: Work) -> None:
        self._gradual = work.pruned if work.pruned and work.pruned.gradual else None
        zeros = final_zeros(work.model, work.calibration(), self._gradual) if self._gradual else {}
        if not self._gradual:
            _require_pattern(work)
        watch, seed = self._gradual is not None, work.config.seed
        self.linears = {
            name: NonzeroLinear(target.weight, seed, name, watch=watch) for name, target in work.targets.items()
        }
        super().__init__(work, self.linears)
        self._start = torch.tensor([linear.zeros for linear in self.linears.values()])
        self._end = list(zeros.values())

    def before_step(self, step: int, /) -> None:
        """Tell every linear the step, and the learning rate if its backward pass takes the optimizer step."""
        at_once = self.config.micro_batches == 1 and process_count() == 1
        rate = schedule.learning_rate(self.config, step) if at_once else None
        for linear in self.linears.values():
            linear.plan = Plan(step, rate)

    def update(self, gradients: Sequence[Tensor], rate: float, scale: float) -> None:
        """Take the optimizer step of each linear, unless its backward pass has taken it."""
        super().update(gradients, rate, scale)
        if self._gradual:
            for linear in self.linears.values():
                linear.update_curvature()

    def evolve(self, step: int, /) -> Evolved | None:
        """Set weights to zero if the sparsity rises after this step. Returns None if it does not."""
        if not self._gradual or not rise.is_event(self._gradual, self.config.steps, step):
            return None
        progress = step / rise.last_event(self._gradual, self.config.steps)
        pruned = self._prune(self._gradual, progress)
        return Evolved.of(step, {name: Change(0, 0, 0, count) for name, count in pruned.items()}, self.sparsity)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of all linears, and the numbers of zeros at the start."""
        return {**super().tensors(), _START: self._start}

    def resume(self, tensors: Mapping[str, Tensor], /) -> None:
        """Replace the present state by saved tensors."""
        self._start = tensors[_START].cpu()
        super().resume({key: tensor for key, tensor in tensors.items() if key != _START})

    def finish(self, report: Reporter, /) -> None:
        """Raise the sparsity to its end if training ended early, and restore the forward functions of the modules."""
        if self._gradual:
            self._prune(self._gradual, 1.0)
        super().finish(report)

    def _prune(self, config: PruneConfig, progress: float) -> dict[str, int]:
        """Set weights to zero for a fraction of the rise. Returns how many became zero, by linear."""
        zeros = zip(self.linears.items(), self._zeros_at(config, progress), strict=True)
        return {name: linear.prune(count, config.compare, config.pattern) for (name, linear), count in zeros}

    def _zeros_at(self, config: PruneConfig, progress: float) -> list[int]:
        """Return how many zeros each linear has at a fraction of the rise."""
        if config.compare is not Compare.MODEL:
            return [
                rise.zeros_at(start, max(start, end), progress)
                for start, end in zip(self._start.tolist(), self._end, strict=True)
            ]
        start = int(self._start.sum())
        total = rise.zeros_at(start, max(start, sum(self._end)), progress)
        return rise.split_over_model([linear.importance for linear in self.linears.values()], total)


def _require_pattern(work: Work) -> None:
    for target in work.targets.values():
        if target.weight.shape[1] % work.pattern.of or overfull_groups(target.weight, work.pattern):
            rule = "must be one that the weights follow"
            raise ConfigError("pattern", rule, str(work.pattern), "Give the pattern that the model was pruned to.")
