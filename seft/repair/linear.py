"""A linear in which only the active positions are trained. Its weight matrix is changed in place and never copied.

The backward pass computes the gradient only at the active positions: `sum over tokens of dy[token, row] * x[token,
col]`. There is no gradient of the whole matrix. In the steps before a topology event, candidates for growth are found
from chunks of rows (`seft.repair.window`).
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seft.config import UNSTRUCTURED, Pattern
from seft.models.targets import Target, count_nonzeros
from seft.prune.mask import require_pattern
from seft.repair import optimizer, topology
from seft.repair.active import Active, sample_nonzeros
from seft.repair.in_place import LinearTrainer
from seft.repair.positions import BasePositions, entries, fields_of, named_fields, put
from seft.repair.processes import sum_over_processes
from seft.repair.sampled import sampled_product
from seft.repair.window import Window
from seft.report import Change

MOST_ZEROS = 0.01
"""[ours] Largest number of zeros that grow in an event, as a fraction of the nonzeros of the linear (at least one zero
may grow). As many nonzeros become zero at once, before any step could adapt the other weights to it."""


class RepairedLinear(LinearTrainer):
    """A linear under repair: its active positions, its budget of nonzeros, and the positions that events set to zero.

    The weight matrix of `target` is changed in place. It differs from the initial matrix only at the positions in
    `active` and `removed`; `removed` has the former nonzeros that events set to zero. The caller must call `product`
    instead of the linear's forward function. `window_type` has the rules that topology events follow. Raises
    ConfigError if the weight matrix does not follow the pattern.
    """

    def __init__(
        self,
        target: Target,
        density: float,
        generator: torch.Generator,
        pattern: Pattern = UNSTRUCTURED,
        window_type: type[Window] = Window,
    ) -> None:
        require_pattern(target.weight, pattern)
        self._target, self.pattern = target, pattern
        self.budget = count_nonzeros(self.weight)
        count = min(max(1, round(density * self.weight.numel())), self.budget)
        self.adopt(Active.start(self.weight, sample_nonzeros(self.weight, count, generator)))
        self.removed = BasePositions(self.active.indices[:0], self.active.bases[:0])
        self.window: Window | None = None
        self.waits = False
        """True if the window observes a micro-batch only after its backward pass, in `observe`."""
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._window_type = window_type
        self.most_zeros = max(1, round(MOST_ZEROS * self.budget))
        self._seed = int(torch.randint(1 << 62, (), generator=generator))
        self.typical = self.active.values.new_zeros(())
        """The typical size of a gradient; 0 if it is unknown."""

    def adopt(self, active: Active) -> None:
        """Replace the active positions. A gradient that was not taken is lost."""
        self.active = active
        self._leaf = active.values.detach().requires_grad_()

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors that are needed to resume.

        They are the active positions, the removed positions, the typical gradient, and the open gradient window with
        its counts.
        """
        parts = named_fields({"active": self.active, "removed": self.removed})
        if (window := self.window) is not None:
            counts = torch.tensor([window.count, self._event, window.observed])
            parts |= {"window": counts, **window.tensors()}
        return {**parts, "typical": self.typical}

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo all changes of the weight matrix, then restore the saved state."""
        self.active.restore(self.weight)
        self.removed.restore(self.weight)  # A removed position that grew again is active with base 0.
        self.adopt(Active(**fields_of(tensors, "active")))
        self.removed = BasePositions(**fields_of(tensors, "removed"))
        put(self.weight, self.removed.indices, self.weight.new_zeros(len(self.removed)))
        self.active.write(self.weight)
        self.window, self.typical = None, tensors["typical"]
        if "window" in tensors:
            count, event, observed = tensors["window"].tolist()
            self.open_window(count, event).resume(tensors, observed)

    def open_window(self, count: int, event: int) -> Window:
        """Start to collect gradients for the topology event at step `event`, which chooses `count` positions."""
        self.window, self._event = self._window_type(self._target, count, self._seed + event, self.pattern), event
        return self.window

    def evolve(self, count: int, steps: int, pieces: int) -> Change:
        """Run a topology event, which replaces `count` active positions, and close the gradient window.

        At most `most_zeros` zeros grow. For each of them, one nonzero becomes zero. The other grown positions are
        nonzeros. If too few nonzeros can grow, the event replaces fewer positions.

        The gradient window observed `steps` steps of `pieces` micro-batches each. If it observed no gradient, nothing
        changes.
        """
        window, self.window = self.window, None
        if window is None or not window.observed:
            return Change(0, 0, 0, 0)
        growth, sample = window.clipped(self.active.indices)
        growth = topology.limit_zeros(growth, self.weight, self.most_zeros)
        # The maximum, because an expert may have had few tokens until now. All other linears have their largest
        # gradients at the start.
        self.typical = self.typical.maximum(optimizer.typical_gradient(sample, steps, pieces))
        kept, dropped = topology.drop(self.active, min(count, len(growth)))
        dropped.restore(self.weight)
        removal = window.removal(kept.indices)
        choice = topology.choose(self.weight, kept, dropped, growth, removal, budget=self.budget, pattern=self.pattern)
        grown = Active.start(self.weight, choice.grown.indices)
        optimizer.seed_moments(grown, choice.grown, steps, pieces)
        spared = dropped[torch.isin(dropped.indices, choice.spared)]
        spared.write(self.weight)
        self._remove(choice.removed, kept)
        self.adopt(kept[~torch.isin(kept.indices, choice.removed)].joined(spared).joined(grown))
        return Change(len(dropped) - len(spared), len(grown), int((grown.bases == 0).sum()), len(choice.removed))

    def reactivated_count(self) -> int:
        """Return the number of weights that were zero when pruning ended and are nonzero now."""
        bases, present = self.active.bases, entries(self.weight, self.active.indices)
        return int(((bases == 0) & (present != 0) & ~torch.isin(self.active.indices, self.removed.indices)).sum())

    def gradient(
        self, left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens cols"]
    ) -> Float[Tensor, "positions"]:
        """Return the gradient of the active values for one micro-batch.

        `left` is the gradient of the linear's outputs, `right` are its inputs. If a gradient window is open, the
        micro-batch is added to it.
        """
        if self.window is not None and self.waits:
            self._seen.append((left, right))
        elif self.window is not None:
            self.window.observe(left, right, self.active.indices)
        return sampled_product(left, right, self.active.indices)

    @torch.no_grad()
    def observe(self) -> None:
        """Add the last micro-batch to the open gradient window, if `waits` is true and any process got tokens.

        All processes must call it in the same order.
        """
        if self.window is None or not self.waits:
            return
        rows, cols = self.weight.shape
        none = (self.weight.new_zeros(0, rows), self.weight.new_zeros(0, cols))
        left, right = (torch.cat(parts) for parts in zip(none, *self._seen, strict=True))
        self._seen = []
        if int(sum_over_processes(torch.tensor(len(left), device=left.device))):
            self.window.observe(left, right, self.active.indices)

    def _remove(self, removed: Int[Tensor, "removed"], kept: Active) -> None:
        kept[torch.isin(kept.indices, removed)].restore(self.weight)
        removed = removed.sort().values
        former = BasePositions(removed.int(), entries(self.weight, removed))
        put(self.weight, removed, self.weight.new_zeros(len(removed)))
        # Positions with base 0 were zero at the start, or are in `removed` already.
        self.removed = self.removed.joined(former[former.bases != 0])
