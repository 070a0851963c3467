"""The repair method SEFT at `density: all`: train all nonzeros in place, and let the sparsity rise while they train.

With the schedule `one_shot` the model is already pruned. With `gradual` it starts as it is, dense or less sparse, and
events set weights to zero until the model has the requested sparsity. Zeros stay zero, except if `swap_tokens` is set:
then events swap zeros and nonzeros, and an event that makes the loss on held-out windows worse is undone.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from seft.config import Compare, PruneConfig
from seft.prune import curvature
from seft.prune.loop import final_zeros
from seft.prune.mask import require_pattern
from seft.prune.methods import comparison
from seft.repair import rise, schedule, swaps
from seft.repair.in_place import OneByOne
from seft.repair.method import Work
from seft.repair.nonzeros import NonzeroLinear, Plan
from seft.repair.processes import broadcast, process_count
from seft.repair.swaps import Observed
from seft.report import Change, Evolved, Reporter

_START, _OBSERVED = "start", "observed"
"""Keys in a saved state that belong to no linear. The keys of linears contain a slash."""


class AllNonzeros(OneByOne):
    """Trains all nonzeros of every linear. Raises ConfigError if the weights do not follow the pattern."""

    def __init__(self, work: Work) -> None:
        self._gradual = work.pruned if work.pruned and work.pruned.gradual else None
        zeros: dict[str, int] = {}
        if self._gradual:
            # All use the numbers of the first process: a product of another process may differ in its last bit.
            zeros = broadcast(final_zeros(work.model, work.calibration(), self._gradual))
        else:
            for target in work.targets.values():
                require_pattern(target.weight, work.pattern)
        kinds = {"watch": self._gradual is not None, "swapping": work.check is not None}
        self.linears = {
            name: NonzeroLinear(target, work.config.seed, name, **kinds) for name, target in work.targets.items()
        }
        super().__init__(work, self.linears)
        self._start = torch.tensor([linear.zeros for linear in self.linears.values()])
        if self._gradual and work.pattern.grouped:
            self._end = [rise.zeros_in_pattern(linear.weight, work.pattern) for linear in self.linears.values()]
        else:
            self._end = list(zeros.values())
        self._compare = comparison(self._gradual) if self._gradual else Compare.LAYER
        self._check, self._pattern = work.check, work.pattern
        # An expert may get tokens in some of the processes only, so its backward pass cannot wait for the others.
        self._in_turn = process_count() > 1 and any(target.expert for target in work.targets.values())
        self._first = self._gradual.rise_end(work.config.steps) if self._gradual else 0
        self._observed = Observed()

    def before_step(self, step: int, /) -> None:
        """Tell every linear the step, and the learning rate if its backward pass takes the optimizer step."""
        at_once = self.config.micro_batches == 1 and not self._in_turn
        rate = schedule.learning_rate(self.config, step) if at_once else None
        collects = self._check is not None and self._first < step <= self.config.last_event
        self._plan = Plan(step, rate, collects)
        for linear in self.linears.values():
            linear.plan = self._plan

    def update(self, gradients: Sequence[Tensor], rate: float, scale: float) -> None:
        """Take the optimizer step of each linear, unless its backward pass has taken it."""
        super().update(gradients, rate, scale)
        for linear in self.linears.values():
            linear.update_curvature()
        if self._plan.collects:
            self._observed = self._observed.plus_step(self.config.micro_batches)

    def evolve(self, step: int, /) -> Evolved | None:
        """Raise the sparsity or swap zeros and nonzeros, if one of them is due after this step. Else return None."""
        if self._gradual and rise.is_event(self._gradual, self.config.steps, step):
            pruned = self._prune(self._gradual, step / self._first)
            return Evolved.of(step, {name: Change(0, 0, 0, count) for name, count in pruned.items()}, self.sparsity)
        if self._check and swaps.is_event(self.config, self._first, step):
            return self._swap(step, self._check)
        return None

    def _swap(self, step: int, check: Callable[[], float]) -> Evolved:
        """Swap zeros and nonzeros in every linear, and undo all swaps if the loss on the held-out windows is higher."""
        before = check()
        tokens = self._batch_tokens()
        done = {name: linear.swap(self._observed, self._pattern, tokens) for name, linear in self.linears.items()}
        self._observed = Observed()
        undone = not check() <= before
        if undone:
            for name, (swap, moments) in done.items():
                self.linears[name].undo(swap, moments)
        counts = {name: len(swap.grown) for name, (swap, _) in done.items()}
        changes = {name: Change(0, grown=count, reactivated=count, pruned=count) for name, count in counts.items()}
        return Evolved.of(step, changes, self.sparsity, undone=undone)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of all linears, their numbers of zeros at the start, and the numbers of gradients."""
        observed = torch.tensor([self._observed.steps, self._observed.micro_batches])
        return {**super().tensors(), _START: self._start, _OBSERVED: observed}

    def resume(self, tensors: Mapping[str, Tensor], /) -> None:
        """Replace the present state by saved tensors."""
        self._start, self._observed = tensors[_START].cpu(), Observed(*tensors[_OBSERVED].tolist())
        super().resume({key: tensor for key, tensor in tensors.items() if key not in {_START, _OBSERVED}})

    def finish(self, report: Reporter, /) -> None:
        """Raise the sparsity to its end if training ended early, and restore the forward functions of the modules."""
        if self._gradual:
            self._prune(self._gradual, 1.0)
        super().finish(report)

    def _batch_tokens(self) -> float:
        """Number of tokens of a step, as the linears count them. All tokens reach the linears that are not experts."""
        return max(linear.tokens for linear in self.linears.values())

    def _prune(self, config: PruneConfig, progress: float) -> dict[str, int]:
        """Set weights to zero for a fraction of the rise. Returns how many became zero, by linear."""
        zeros = zip(self.linears.items(), self._zeros_at(config, progress), strict=True)
        return {name: linear.prune(count, self._compare, config.pattern) for (name, linear), count in zeros}

    def _zeros_at(self, config: PruneConfig, progress: float) -> list[int]:
        """Return how many zeros each linear has at a fraction of the rise.

        At the end of the rise in an N:M pattern, only the pattern limits the number. Otherwise other groups would get
        too few zeros if one group had more than the pattern asks for at the start.
        """
        if config.pattern.grouped and progress >= 1:
            return [linear.weight.numel() for linear in self.linears.values()]
        starts, linears = self._start.tolist(), list(self.linears.values())
        ends = [max(start, end) for start, end in zip(starts, self._end, strict=True)]
        zeros = [rise.zeros_at(start, end, progress) for start, end in zip(starts, ends, strict=True)]
        if self._compare is Compare.MODEL:
            # The importance of the weights of an expert without tokens is unknown. It gets the zeros of `layer`.
            known = [number for number, linear in enumerate(linears) if linear.observed]
            others = sum(zeros) - sum(zeros[number] for number in known)
            total = rise.zeros_at(sum(starts), sum(ends), progress) - others
            tokens = self._batch_tokens()
            scores = [partial(linears[number].importance, tokens) for number in known]
            for number, count in zip(known, curvature.split_below_limit(scores, total), strict=True):
                zeros[number] = count
        return zeros
