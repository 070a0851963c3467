"""What every decoder block is given when the model runs: hidden states, masks, rotary embeddings, whatever there is.

The model runs once per window with all blocks standing aside, so that their weights cost nothing and each block's own
arguments are seen (they differ where some blocks look through a sliding window); the first block alone runs, once, to
show in what form a block answers. Nothing is assumed but this: the hidden state comes first, and the blocks hand on
nothing else.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from seft.models.blocks import Hidden, hidden_state


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a block but for its hidden state."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, block: nn.Module, hidden: Hidden, device: torch.device) -> Hidden:
        """The block's hidden output, computed on `device` and brought back to where `hidden` was."""
        args, kwargs = map_tensors((self.args, self.kwargs), lambda tensor: tensor.to(device))
        return hidden_state(block(hidden.to(device), *args, **kwargs)).to(hidden.device)


class _AllSeenError(Exception):
    """Ends a forward pass behind the last block: the head would cost more than all before it."""


def capture(
    model: Any, blocks: nn.ModuleList, windows: Int[Tensor, "windows tokens"]
) -> tuple[list[Hidden], list[list[Call]]]:
    """For every window the hidden state before the first block, and the call of every block.

    Equal tensors are held once: masks and rotary embeddings are the same in every window.
    """
    share = Pool()
    hidden: list[Hidden] = []
    calls: list[list[Call]] = []

    def record(number: int, state: Hidden, call: Call) -> None:
        if number == 0:
            hidden.append(state)
            calls.append([])
        calls[-1].append(Call(*map_tensors((call.args, call.kwargs), share)))
        if number == len(blocks) - 1:
            raise _AllSeenError

    with _standing_aside(blocks, record):
        for window in windows[:, None]:
            try:
                model(input_ids=window.to(model.device), use_cache=False)
            except _AllSeenError:
                continue
    return hidden, calls


@contextmanager
def _standing_aside(blocks: nn.ModuleList, record: Callable[[int, Hidden, Call], None]) -> Iterator[None]:
    """Blocks hand their hidden state on unchanged, in the form that a true block returns."""
    shape: list[Any] = []

    def stand_in(number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def pass_on(*args: Any, **kwargs: Any) -> Any:
            state, rest, named = _split(args, kwargs)
            if not shape:
                shape.append(forward(*args, **kwargs))
            record(number, state, Call(rest, named))
            return (state, *shape[0][1:]) if isinstance(shape[0], tuple) else state

        return pass_on

    for number, block in enumerate(blocks):
        block.forward = stand_in(number, block.forward)
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
    """Holds equal tensors once."""

    def __init__(self) -> None:
        self._held: list[Tensor] = []

    def __call__(self, tensor: Tensor) -> Tensor:
        """The first equal one that it was given."""
        for held in self._held:
            if held is tensor or (held.dtype == tensor.dtype and torch.equal(held, tensor)):
                return held
        self._held.append(tensor)
        return tensor


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nest of tuples, lists and dictionaries with every tensor changed."""
    match value:
        case Tensor():
            return change(value)
        case tuple() | list():
            return type(value)(map_tensors(inner, change) for inner in value)
        case dict():
            return {key: map_tensors(inner, change) for key, inner in value.items()}
        case _:
            return value
