"""Visits the decoder blocks in order. The inputs of each block are the outputs of the blocks before it.

The model stays on its device. One block at a time moves to the compute device, so the model may be larger than that
device.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from seft.models.products import Handler
from seft.models.targets import Hidden, Target, decoder_blocks
from seft.prune.backward import backward, moved
from seft.prune.capture import capture
from seft.report import Phase, Progress, Reporter

Windows = Int[Tensor, "windows tokens"]
Runs = Sequence[Callable[[], Hidden]]
"""One function per window (a sequence of tokens). Each runs the block on its window and returns the hidden state."""


class Walk:
    """Visits all blocks each time it is called, and reports progress.

    `passes` is the number of calls that will be made. `gradients` is the work of `backward` in units of one visit of a
    block, or 0 if `backward` will not be called.
    """

    def __init__(
        self, model: Any, device: torch.device, report: Reporter, phase: Phase, passes: int = 1, *, gradients: int = 0
    ) -> None:
        self._model, self._device, self._report, self._phase = model, device, report, phase
        self._blocks = decoder_blocks(model)
        self._done, self._gradients = 0, gradients
        self._total = passes * len(self._blocks) + gradients

    def __call__(self, windows: Windows, visit: Callable[[int, Runs], None]) -> None:
        """Call `visit` for each block while it is on the device.

        The outputs after the visit are the next block's inputs. `visit` gets the number of the block and its `Runs`.
        """
        home = self._model.device
        hidden, calls = capture(self._model, self._blocks, windows) if len(windows) else ([], [])
        for number, block in enumerate(self._blocks):
            self.report_progress()
            with moved(block, self._device, home):
                runs = [
                    partial(window[number].run, block, state, self._device)
                    for window, state in zip(calls, hidden, strict=True)
                ]
                visit(number, runs)
                hidden = [run() for run in runs] if number + 1 < len(self._blocks) else []
            self._done += 1

    def backward(self, windows: Windows, handlers: Sequence[Mapping[Target, Handler]]) -> None:
        """Compute the gradients of the loss on `windows`, as `seft.prune.backward` does, and report progress."""
        before = self._done
        for done, total in backward(self._model, self._device, windows, handlers):
            self._done = before + done * self._gradients // total
            self.report_progress()

    def report_progress(self) -> None:
        """Report how many blocks are done. An exception that the reporter raises is not caught."""
        self._report(Progress(self._phase, self._done, self._total))
