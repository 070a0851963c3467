"""The repair of a whole model: steps, windows, events, and a state from which any step can be gone on from.

Method: Xiao et al., "Leave it to the Specialist", arXiv 2505.24037. The loop holds what the pure parts need: modules,
text, the step. It knows no file format (`seft.repair.state`) and no job.
"""

import math
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from seft.config import RepairConfig
from seft.errors import StateError, TrainError
from seft.loss import TokenLoss
from seft.products import take_over
from seft.repair import optimizer, schedule, state
from seft.repair.linear import RepairedLinear
from seft.repair.window import Window
from seft.report import Evolved, Phase, Progress, Reporter, Step, silent
from seft.seeds import generator
from seft.targets import target_linears
from seft.text import must_be_known, side_by_side


class Repair:
    """Repairs the pruned weights that `model` has now, on `tokens`; they stay merged in place all the time.

    Only the active sets are trained, every parameter is frozen until `finish`. No linear ever has more nonzeros than
    it has now. DataError when the text is shorter than one window.
    """

    def __init__(self, model: Any, tokens: Int[Tensor, "tokens"], config: RepairConfig) -> None:
        self.config = config
        self.step = 0
        self._rows = side_by_side(tokens, config.sequence_tokens)
        must_be_known(self._rows, model)
        self._device: torch.device = model.device
        targets = target_linears(model)
        self._fingerprint = state.fingerprint(targets, self._rows)
        self._trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in self._trainable:
            parameter.requires_grad_(False)
        self._losses = TokenLoss(model)
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        self._linears = {
            name: RepairedLinear(target.weight, config.density, generator(config.seed, name))
            for name, target in targets.items()
        }
        self._release = take_over({targets[name]: linear.product for name, linear in self._linears.items()})

    @property
    def grown_zeros(self) -> int:
        """Positions that were zero at the start and are nonzero now."""
        return sum(linear.reactivated() for linear in self._linears.values())

    def run(self, report: Reporter = silent) -> None:
        """Take the steps that are left. What `report` raises passes through between two steps."""
        while self.step < self.config.steps:
            for each in self.advance():
                report(each)
            report(Progress(Phase.TRAINING, self.step, self.config.steps))

    def advance(self) -> list[Step | Evolved]:
        """One optimizer step, and the event that is due after it.

        TrainError when loss or gradient is not finite; the weights are then as the step before left them.
        """
        began = time.perf_counter()
        step = self.step + 1
        self._open_windows(step)
        loss = self._accumulate(step)
        rate = schedule.learning_rate(self.config, step)
        self._update(step, loss, rate)
        self.step = step
        speed = self.config.batch_tokens / (time.perf_counter() - began)
        reports: list[Step | Evolved] = [Step(step, loss, rate, speed)]
        return reports + self._evolve() if schedule.next_event(self.config, step) == step else reports

    def finish(self) -> None:
        """Leave the model as it came: its own products, the merged weights, parameters trainable as before."""
        self._release()
        for parameter in self._trainable:
            parameter.requires_grad_(True)

    def save(self, folder: Path) -> None:
        """Write all that differs from the pruned weights, and all that the next step depends on."""
        state.save(folder, self._linears, self.step, self.config, self._fingerprint)

    def load(self, folder: Path) -> None:
        """Go on from a saved state. `self` must be new, made of the same pruned weights, text and configuration.

        StateError when the state is of something else.
        """
        if self.step:
            raise StateError(
                f"a state must be loaded into a fresh repair; this one is at step {self.step}. Make a new one."
            )
        self.step = state.load(folder, self._linears, self.config, self._fingerprint)

    def _open_windows(self, step: int) -> None:
        event = schedule.next_event(self.config, step)
        if event is None or event - step >= schedule.WINDOW:
            return
        for linear in self._linears.values():
            count = schedule.dropped(self.config, event, len(linear.active))
            if linear.window is None and count:
                linear.window = Window(linear.weight, count)

    def _accumulate(self, step: int) -> float:
        """Gradients of the mean loss of a step, one micro-batch after the other."""
        rows = self._rows[schedule.rows_of_step(self.config, len(self._rows), step)]
        predictions = len(rows) * (self.config.sequence_tokens - 1)
        loss = torch.zeros((), dtype=torch.float64)
        for batch in torch.split(rows, self.config.micro_batch):
            part = self._losses(batch.to(self._device)).sum() / predictions
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach().cpu()
        return float(loss)

    @torch.no_grad()
    def _update(self, step: int, loss: float, rate: float) -> None:
        gradients = {name: linear.take_gradient() for name, linear in self._linears.items()}
        norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
        if not math.isfinite(loss + float(norm)):
            raise TrainError(
                f"loss and gradient must stay finite; step {step} has loss {loss} and gradient norm {float(norm)}."
                " Lower the learning rate, or train in bfloat16 or float32."
            )
        for name, linear in self._linears.items():
            optimizer.step(linear.active, gradients[name], rate, self.config.weight_decay)
            linear.active.write(linear.weight)

    @torch.no_grad()
    def _evolve(self) -> list[Step | Evolved]:
        pieces = math.ceil(self.config.batch_tokens / self.config.sequence_tokens / self.config.micro_batch)
        changes = [
            linear.evolve(schedule.dropped(self.config, self.step, len(linear.active)), pieces)
            for linear in self._linears.values()
        ]
        return [Evolved(self.step, *map(sum, zip(*changes, strict=True)))]
