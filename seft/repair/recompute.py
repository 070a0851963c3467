"""Computes the activations of each decoder block again in the backward pass, so that only its inputs are kept.

This is activation checkpointing (Chen et al. 2016, arXiv 1604.06174). The result has the same bits.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Recompute:
    """Replaces the forward functions of some modules until `undo` is called."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._before = [(module, vars(module).get("forward")) for module in modules]
        for module, _ in self._before:
            module.forward = _Recomputed(module.forward)

    def undo(self) -> None:
        """Restore the forward functions."""
        for module, forward in self._before:
            del module.forward
            if forward is not None:
                module.forward = forward
        self._before = []


class _Recomputed:
    """A forward function whose activations are computed again in the backward pass."""

    def __init__(self, forward: Any) -> None:
        self._forward = forward

    def __call__(self, *args: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._forward(*args, **options)
        # No random numbers are drawn: the model is in evaluation mode.
        return checkpoint(self._forward, *args, use_reentrant=False, preserve_rng_state=False, **options)
