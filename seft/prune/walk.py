"""Visits the decoder blocks in order. The inputs of each block are the outputs of the blocks before it.

The model stays on its device. One block at a time moves to the compute device, so the model may be larger than that
device.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from seft.models.blocks import Hidden
from seft.models.targets import decoder_blocks
from seft.prune.capture import capture
from seft.report import Phase, Progress, Reporter

Windows = Int[Tensor, "windows tokens"]
Runs = Sequence[Callable[[], Hidden]]
"""One function per window (a sequence of tokens). Each runs the block on its window and returns the hidden state."""


class Walk:
    """Visits all blocks each time it is called, and reports progress.

    `passes` is the number of calls that will be made.
    """

    def __init__(self, model: Any, place: torch.device, report: Reporter, phase: Phase, passes: int = 1) -> None:
        self._model, self._place, self._report, self._phase = model, place, report, phase
        self._blocks = decoder_blocks(model)
        self._done, self._total = 0, passes * len(self._blocks)

    def __call__(self, windows: Windows, visit: Callable[[int, Runs], None]) -> None:
        """Call `visit` for each block while it is on the device.

        The outputs after the visit are the next block's inputs. `visit` gets the number of the block and its `Runs`.
        """
        home = self._model.device
        hidden, calls = capture(self._model, self._blocks, windows) if len(windows) else ([], [])
        for number, block in enumerate(self._blocks):
            self.report_progress()
            moves = self._place != home  # a block that is split over processes must not even be moved to its own device
            if moves:
                block.to(self._place)
            try:
                runs = [
                    partial(window[number].run, block, state, self._place)
                    for window, state in zip(calls, hidden, strict=True)
                ]
                visit(number, runs)
                hidden = [run() for run in runs]
            finally:
                if moves:
                    block.to(home)
            self._done += 1

    def report_progress(self) -> None:
        """Report how many blocks are done. An exception that the reporter raises is not caught."""
        self._report(Progress(self._phase, self._done, self._total))
