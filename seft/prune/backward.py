"""Gradients of the loss of a model that may be larger than the device. One block at a time is on the device.

A window (a sequence of tokens) runs forward through all blocks without gradients, and the inputs of each block are
kept. Then the blocks run again in reverse order, each with its gradients, so the activations of only one block are in
memory (Chen et al. 2016, arXiv 1604.06174).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from seft.loss import TokenLoss
from seft.models.products import Handler, intercepted_products
from seft.models.targets import Hidden, Target, decoder_blocks
from seft.prune.capture import Call, bypassed, capture


def backward(
    model: Any,
    device: torch.device,
    windows: Int[Tensor, "windows tokens"],
    handlers: Sequence[Mapping[Target, Handler]],
) -> Iterator[tuple[int, int]]:
    """Compute the gradients of the sum of the losses of all predicted tokens, one window after another.

    The targets of a block call their handlers instead of their forward functions while the block computes its
    gradients. `handlers` has one mapping per block. No weight gets a gradient. Yields how many runs of a block are
    done, and how many there will be.
    """
    blocks, loss, home = decoder_blocks(model), TokenLoss(model), model.device
    done, total = 0, 2 * len(windows) * len(blocks)
    for window in windows[:, None]:
        yield done, total
        (state,), (calls,) = capture(model, blocks, window)
        states = [state]
        for block, call in zip(blocks, calls, strict=True):
            with moved(block, device, home):
                states.append(call.run(block, states[-1], device))
            done += 1
            yield done, total
        gradient = _last_gradient(model, window, states.pop(), loss)
        for number in reversed(range(len(blocks))):
            block, state = blocks[number], states.pop().requires_grad_()
            with moved(block, device, home), _gradients(block), intercepted_products(handlers[number]):
                output = calls[number].run(block, state, device)
                (gradient,) = torch.autograd.grad(output, state, gradient)
            done += 1
            yield done, total


def _last_gradient(model: Any, window: Int[Tensor, "1 tokens"], state: Hidden, loss: TokenLoss) -> Hidden:
    """Return the gradient of the loss with respect to `state`, the output of the last block."""
    blocks, leaf = decoder_blocks(model), state.detach().requires_grad_()

    def replace(number: int, hidden: Hidden, _: Call) -> Hidden:
        return leaf if number == len(blocks) - 1 else hidden

    with bypassed(blocks, replace), _gradients(model):
        total = loss(window.to(model.device)).sum()
    (gradient,) = torch.autograd.grad(total, leaf)
    return gradient


@contextmanager
def _gradients(module: nn.Module) -> Iterator[None]:
    """Compute gradients while the `with` block runs, but no gradients of the parameters of `module`."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad = False
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad = True


@contextmanager
def moved(block: nn.Module, device: torch.device, home: torch.device) -> Iterator[None]:
    """Move a block to `device` while the `with` block runs, and back to `home` afterwards."""
    if device == home:  # a block that is split over processes must not even be moved to its own device
        yield
        return
    block.to(device)
    try:
        yield
    finally:
        block.to(home)
