"""Changes to the library for a single experiment: a part of SEFT is removed, or replaced by the rule of the paper.

A change replaces functions and constants of the library while the experiment runs.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.optimizers import ByNorms, BySign, RoundedToNearest, WithMasters, WithMomentum
from seft.config import Variant
from seft.dtypes import master_dtype
from seft.prune import curvature
from seft.prune.curvature import Curvature
from seft.repair import active, all_nonzeros, fixed_mask, linear, optimizer, schedule, topology
from seft.repair.positions import entries
from seft.repair.published import PublishedWindow
from seft.repair.window import Window

Change = Mapping[tuple[Any, str], Any]
"""Replacements of functions and constants of the library: (owner, name) -> replacement."""


@contextmanager
def applied(name: str) -> Iterator[None]:
    """Make the change with this name, and undo it at the end. An empty name changes nothing."""
    with ExitStack() as stack:
        for (owner, attribute), replacement in (CHANGES[name] if name else {}).items():
            stack.enter_context(patch.object(owner, attribute, replacement))
        yield


def _at_nonzeros(*arguments: Any, **named: Any) -> topology.Choice:
    weight, kept, dropped, growth, removal = arguments
    return CHOOSE(weight, kept, dropped, growth[entries(weight, growth.indices) != 0], removal, **named)


def _magnitude(window: Window, places: torch.Tensor) -> torch.Tensor:
    return entries(window._weight, places).abs()


def _equal_draws(_: Window, gradient: torch.Tensor, __: slice) -> torch.Tensor:
    return torch.ones_like(gradient)


class _PublishedRemoval(PublishedWindow):
    """The gradient window of the improved variant, except that the smallest |W * gradient| becomes zero."""

    clipped = Window.clipped
    _sample = Window._sample

    def _list(self, gradient: torch.Tensor, rows: slice, taken: torch.Tensor) -> None:
        super()._list(gradient, rows, taken)
        Window._list(self, gradient, rows, taken)


CHOOSE = topology.choose
OPTIMIZERS = {
    "rounded to the nearest number": RoundedToNearest,
    "float32 copies of the weights": WithMasters,
    "momentum in bfloat16": WithMomentum,
    "steps by the sign": BySign,
    "steps by the norms of inputs and output gradients": ByNorms,
}
"""Other optimizers for all nonzeros."""
MOMENTS = "moments in float32"
ALLOCATED: dict[str, Change] = {
    "equally sparse linears": {(curvature, "allocate"): lambda _, uniform, __: uniform},
    "equal rows": {(Curvature, "row_factors"): lambda _: None},
}
"""Parts of the allocation by curvature that are left out."""
LATER = dict.fromkeys(Variant, 5)
CHANGES: dict[str, Change] = {
    "growth at nonzeros only": {(topology, "choose"): _at_nonzeros},
    "no limit for zeros": {(linear, "MOST_ZEROS"): 1.0},
    MOMENTS: {(active, "moment_dtype"): master_dtype},
    "grown entries start with empty moments": {(optimizer, "seed_moments"): lambda *_: None},
    "the largest gradients grow": {(Window, "_draws"): _equal_draws},
    "steps of full size everywhere": {(Window, "_sample"): PublishedWindow._sample},
    "the opening after 5 steps, windows of 5 steps": {(schedule, "OPENING"): LATER, (schedule, "WINDOW"): LATER},
    "adapt by |W * gradient|": {(fixed_mask, "WINDOWS"): {Variant.IMPROVED: _PublishedRemoval}},
    "adapt by magnitude": {(Window, "_sensitivity"): _magnitude},
    **ALLOCATED,
    **{name: {(all_nonzeros, "NonzeroLinear"): linear_class} for name, linear_class in OPTIMIZERS.items()},
}
