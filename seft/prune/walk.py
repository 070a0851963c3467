"""Over the decoder blocks in their order, each on what the blocks before it hand on.

The model stays where it is; one block at a time is brought to the device, so a model larger than it can be worked on.
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
"""A block, run on each window."""


class Walk:
    """Goes over the blocks as often as it is called, `passes` times in all; tells how far all of it is."""

    def __init__(self, model: Any, place: torch.device, report: Reporter, phase: Phase, passes: int = 1) -> None:
        self._model, self._place, self._report, self._phase = model, place, report, phase
        self._blocks = decoder_blocks(model)
        self._done, self._total = 0, passes * len(self._blocks)

    def __call__(self, windows: Windows, visit: Callable[[int, Runs], None]) -> None:
        """Visit each block while it is on the device; what it then makes of the windows goes to the next one."""
        home = self._model.device
        hidden, calls = capture(self._model, self._blocks, windows) if len(windows) else ([], [])
        for number, block in enumerate(self._blocks):
            self.tell()
            block.to(self._place)
            try:
                runs = [
                    partial(window[number].run, block, state, self._place)
                    for window, state in zip(calls, hidden, strict=True)
                ]
                visit(number, runs)
                hidden = [run() for run in runs]
            finally:
                block.to(home)
            self._done += 1

    def tell(self) -> None:
        """Say how many blocks are done; what `report` raises ends the work."""
        self._report(Progress(self._phase, self._done, self._total))
