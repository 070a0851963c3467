"""The repair of a whole model: steps of whichever method, and a state from which any step can be gone on from.

What is trained is the method's affair (`seft.repair.methods`). The loop holds what all need: text, losses, the step. It
knows no file format (`seft.repair.state`) and no job.
"""

import math
import time
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from seft.config import PruneConfig, RepairConfig
from seft.data.packing import Packed, cut_windows
from seft.data.text import require_known_tokens
from seft.errors import StateError, TrainError
from seft.models.targets import target_linears
from seft.objective import make_objective
from seft.repair import schedule, state
from seft.repair.best import Best, Judge
from seft.repair.method import Method, Work
from seft.repair.methods import METHODS
from seft.repair.processes import mine, processes, require_same_config, summed
from seft.report import Evolved, Judged, Phase, Progress, Reporter, Step, silent


class Repair:
    """Repairs the pruned weights that `model` has now, on `text`.

    `text` is packed windows, or one row of tokens, which is cut side by side and trained on whole. `teacher` is the
    dense model, where `config` wants to learn from it. `judge` tells the loss on held-out text, where `config` wants
    evaluations; the same state must have the same loss whenever it is judged, and in every process.

    Every parameter is frozen until `finish`; only what the method trains moves. No linear has more nonzeros then than
    it has now, nor has it left the pattern of `pruned`, which tells how the model was pruned. DataError when the text
    is shorter than one window.
    """

    def __init__(
        self,
        model: Any,
        text: Packed | Int[Tensor, "tokens"],
        config: RepairConfig,
        *,
        pruned: PruneConfig | None = None,
        teacher: Any | None = None,
        judge: Judge | None = None,
    ) -> None:
        require_same_config(config)
        self._best = Best(config, judge)
        self.config = config
        self.step = 0
        self._windows = Packed.of(cut_windows(text, config.sequence_tokens) if isinstance(text, Tensor) else text)
        require_known_tokens(self._windows.tokens, model)
        self._device: torch.device = model.device
        targets = target_linears(model)
        self._trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in self._trainable:
            parameter.requires_grad_(False)
        self._objective = make_objective(model, config, teacher)
        taught_by = {} if teacher is None else target_linears(teacher)
        self._fingerprint = state.fingerprint(targets, self._windows, pruned, taught_by)
        work = Work(model, targets, config, self._windows.tokens.flatten(), pruned)
        self._method: Method = METHODS[config.method](work)

    @property
    def grown_zeros(self) -> int:
        """Positions that were zero at the start and are nonzero now; good after `finish`, too."""
        return self._method.grown_zeros

    @property
    def done(self) -> bool:
        """Whether all steps are taken, or evaluations have found nothing better for too long."""
        return self.step >= self.config.steps or self._best.hopeless

    @property
    def kept(self) -> int:
        """The step after which the state was that `finish` leaves: the best one judged, or the present one."""
        return self.step if self._best.step is None else self._best.step

    @property
    def trained(self) -> int:
        """How many values are trained."""
        return self._method.trained

    def run(self, report: Reporter = silent) -> None:
        """Take the steps that are left. What `report` raises passes through between two steps."""
        while not self.done:
            for each in self.advance():
                report(each)
            report(Progress(Phase.TRAINING, self.step, self.config.steps))

    def advance(self) -> list[Step | Evolved | Judged]:
        """One optimizer step, and the event and the evaluation that are due after it.

        TrainError when loss or gradient is not finite; the weights are then as the step before left them.
        """
        began = time.perf_counter()
        step = self.step + 1
        self._method.open(step)
        loss = self._accumulate(step)
        rate = schedule.learning_rate(self.config, step)
        self._update(step, loss, rate)
        self.step = step
        speed = self.config.batch_tokens / (time.perf_counter() - began)
        with torch.no_grad():
            evolved = self._method.evolve(step)
            judged = self._best.look(step, self._method.tensors())
        reports = (Step(step, loss, rate, speed), evolved, judged)
        return [each for each in reports if each is not None]

    @torch.no_grad()
    def finish(self, report: Reporter = silent) -> None:
        """Leave the model as it came: its modules, its parameters trainable; with the weights that `kept` tells of."""
        if self.kept != self.step:
            self._method.resume(self._best.tensors)
        self._method.finish(report)
        for parameter in self._trainable:
            parameter.requires_grad_(True)

    def save(self, folder: Path) -> None:
        """Write all that differs from the pruned weights, and all that the next step depends on."""
        now = self._best.joined(self._method.tensors())
        now.facts["step"] = self.step
        state.save(folder, now, self.config, self._fingerprint)

    def load(self, folder: Path) -> None:
        """Go on from a saved state. `self` must be new, made of the same pruned weights, text and configuration.

        StateError when the state is of something else.
        """
        if self.step:
            raise StateError(
                f"a state must be loaded into a fresh repair; this one is at step {self.step}. Make a new one."
            )
        saved = state.load(folder, self.config, self._fingerprint)
        self._method.resume(self._best.parted(saved))
        self.step = int(saved.facts["step"])

    def _accumulate(self, step: int) -> float:
        """Gradients of the mean loss over a step's predictions, one micro-batch after the other."""
        windows = self._windows[schedule.rows_of_step(self.config, len(self._windows), step)]
        loss = torch.zeros((), dtype=torch.float64)
        for batch in windows.split(self.config.micro_batch):
            part = self._objective(batch[mine()].to(self._device)) / windows.predictions
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach().cpu()
        return float(summed(loss.to(self._device))) if processes() > 1 else float(loss)

    @torch.no_grad()
    def _update(self, step: int, loss: float, rate: float) -> None:
        gradients = [summed(gradient) for gradient in self._method.take_gradients()]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        if not math.isfinite(loss + float(norm)):
            raise TrainError(
                f"loss and gradient must stay finite; step {step} has loss {loss} and gradient norm {float(norm)}."
                " Lower the learning rate, or train in bfloat16 or float32."
            )
        scale = 1.0
        if self.config.clip_norm is not None and norm > self.config.clip_norm:
            scale = self.config.clip_norm / float(norm)
            gradients = [gradient * scale for gradient in gradients]
        self._method.update(gradients, rate, scale)
