"""Record the arguments that a model passes to each decoder block: hidden states, masks, rotary embeddings and others.

The model runs once per window (a sequence of tokens) with every block bypassed, so the blocks need no compute and no
device memory. The arguments are recorded for each block, because they differ if some blocks use sliding-window
attention. Only the first block really runs, once, to see in what form a block returns its output. Two things are
assumed: the hidden state is the first argument of a block, and a block passes nothing else to the next block.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import recursively_apply
from jaxtyping import Int
from torch import Tensor, nn

from seft.models.targets import Hidden, hidden_state


@dataclass(frozen=True, slots=True)
class Call:
    """Arguments of one call of a block, except the hidden state."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, block: nn.Module, hidden: Hidden, device: torch.device) -> Hidden:
        """Call the block on `device`. Returns its hidden state, moved back to the device of `hidden`."""
        args, kwargs = recursively_apply(lambda tensor: tensor.to(device), (self.args, self.kwargs))
        return hidden_state(block(hidden.to(device), *args, **kwargs)).to(hidden.device)


class _LastBlockError(Exception):
    """Ends a forward pass after the last block, because the head would cost more than everything before it."""


def capture(
    model: Any, blocks: nn.ModuleList, windows: Int[Tensor, "windows tokens"]
) -> tuple[list[Hidden], list[list[Call]]]:
    """Return, per window, the hidden state before the first block and the recorded call of every block.

    Equal tensors are stored once: masks and rotary embeddings are the same in every window.
    """
    pool = Pool()
    hidden: list[Hidden] = []
    calls: list[list[Call]] = []

    def record(number: int, state: Hidden, call: Call) -> Hidden:
        if number == 0:
            hidden.append(state)
            calls.append([])
        calls[-1].append(Call(*recursively_apply(pool, (call.args, call.kwargs))))
        if number == len(blocks) - 1:
            raise _LastBlockError
        return state

    with bypassed(blocks, record):
        for window in windows[:, None]:
            try:
                model(input_ids=window.to(model.device), use_cache=False)
            except _LastBlockError:
                continue
    return hidden, calls


@contextmanager
def bypassed(blocks: nn.ModuleList, replace: Callable[[int, Hidden, Call], Hidden]) -> Iterator[None]:
    """Make every block return the result of `replace`, and compute nothing, while the `with` block runs.

    `replace` gets the number of the block, its hidden state and its other arguments. It returns a hidden state, which
    the block returns in the form in which a real block returns it.
    """
    sample: list[Any] = []

    def bypass(number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def forward_replaced(*args: Any, **kwargs: Any) -> Any:
            state, rest, named = _split(args, kwargs)
            if not sample:
                with torch.no_grad():
                    sample.append(forward(*args, **kwargs))
            new = replace(number, state, Call(rest, named))
            return (new, *sample[0][1:]) if isinstance(sample[0], tuple | list) else new

        return forward_replaced

    for number, block in enumerate(blocks):
        block.forward = bypass(number, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Hidden, tuple[Any, ...], dict[str, Any]]:
    if args:
        return args[0], args[1:], kwargs
    named = dict(kwargs)
    return named.pop("hidden_states"), (), named


class Pool:
    """Removes duplicates: stores each distinct tensor once."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return the stored tensor that equals `tensor`. If there is none, store and return `tensor`."""
        for stored in self._tensors:
            if stored is tensor or (stored.dtype == tensor.dtype and torch.equal(stored, tensor)):
                return stored
        self._tensors.append(tensor)
        return tensor
