"""Training loop for any repair method; saves and resumes at any step.

The method decides what is trained (`seft.repair.methods`). The loop has what all methods need: text, loss, step. The
file format is in `seft.repair.state`. Jobs are not known here.
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
from seft.repair.processes import own_windows, process_count, require_same_config, sum_over_processes
from seft.report import Evolved, Judged, Phase, Progress, Reporter, Step, silent


class Repair:
    """Repairs the present, pruned weights of `model` on `text`.

    `text` is packed windows, or one row of tokens, which is cut into adjacent windows and trained on completely.
    `pruned` is how the model was pruned. `teacher` is the dense model, if `config` distils from it. `judge` returns the
    loss on held-out text, if `config` evaluates; it must return the same loss for the same state, at any time and in
    every process.

    Every parameter is frozen until `finish`; only the values of the method are trained. At the end no linear has more
    nonzeros than now, and all follow the pattern of `pruned`. Raises DataError if the text is shorter than one window,
    and ConfigError if model, method and settings do not fit together.
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
        teacher_targets = {} if teacher is None else target_linears(teacher)
        self._fingerprint = state.fingerprint(targets, self._windows, pruned, teacher_targets)
        work = Work(model, targets, config, self._windows.tokens.flatten(), pruned)
        self._method: Method = METHODS[config.method](work)

    @property
    def grown_zeros(self) -> int:
        """Number of positions that were zero at the start and are nonzero now. Also valid after `finish`."""
        return self._method.grown_zeros

    @property
    def done(self) -> bool:
        """True if all steps are done, or if evaluations found nothing better for too long."""
        return self.step >= self.config.steps or self._best.exhausted

    @property
    def kept_step(self) -> int:
        """Step of the state that `finish` leaves in the model: the best one evaluated, else the present one."""
        return self.step if self._best.step is None else self._best.step

    @property
    def trained_values(self) -> int:
        """Number of trained values."""
        return self._method.trained_values

    def run(self, report: Reporter = silent) -> None:
        """Take the remaining steps. An exception from `report` passes through, always between two steps."""
        while not self.done:
            for item in self.advance():
                report(item)
            report(Progress(Phase.TRAINING, self.step, self.config.steps))

    def advance(self) -> list[Step | Evolved | Judged]:
        """Take one optimizer step, and run the event and the evaluation due after it. Returns their reports.

        Raises TrainError if the loss or the gradient is not finite; the weights are then those after the step before.
        """
        began = time.perf_counter()
        step = self.step + 1
        self._method.before_step(step)
        loss = self._accumulate(step)
        rate = schedule.learning_rate(self.config, step)
        self._update(step, loss, rate)
        self.step = step
        speed = self.config.batch_tokens / (time.perf_counter() - began)
        with torch.no_grad():
            evolved = self._method.evolve(step)
            judged = self._best.evaluate(step, self._method.tensors())
        reports = (Step(step, loss, rate, speed), evolved, judged)
        return [item for item in reports if item is not None]

    @torch.no_grad()
    def finish(self, report: Reporter = silent) -> None:
        """Restore the model's modules and make its parameters trainable again, with the weights of `kept_step`."""
        if self.kept_step != self.step:
            self._method.resume(self._best.tensors)
        self._method.finish(report)
        for parameter in self._trainable:
            parameter.requires_grad_(True)

    def save(self, folder: Path) -> None:
        """Save all differences from the pruned weights, and all that the next step depends on."""
        now = self._best.with_best(self._method.tensors())
        now.facts["step"] = self.step
        state.save(folder, now, self.config, self._fingerprint)

    def load(self, folder: Path) -> None:
        """Continue from a saved state. `self` must be new, with the same pruned weights, text and configuration.

        Raises StateError if it is not new, or if the state belongs to another repair.
        """
        if self.step:
            raise StateError(
                f"a state must be loaded into a new repair; this repair is at step {self.step}. Create a new one."
            )
        saved = state.load(folder, self.config, self._fingerprint)
        self._method.resume(self._best.split(saved))
        self.step = int(saved.facts["step"])

    def _accumulate(self, step: int) -> float:
        """Accumulate the gradients of the mean loss over a step's predictions, per micro-batch. Returns the loss."""
        windows = self._windows[schedule.rows_of_step(self.config, len(self._windows), step)]
        loss = torch.zeros((), dtype=torch.float64)
        for batch in windows.split(self.config.micro_batch):
            part = self._objective(batch[own_windows()].to(self._device)) / windows.predictions
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach().cpu()
        return float(sum_over_processes(loss.to(self._device))) if process_count() > 1 else float(loss)

    @torch.no_grad()
    def _update(self, step: int, loss: float, rate: float) -> None:
        gradients = [sum_over_processes(gradient) for gradient in self._method.take_gradients()]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        if not math.isfinite(loss + float(norm)):
            raise TrainError(
                f"loss and gradient must be finite; step {step} has loss {loss} and gradient norm {float(norm)}."
                " Lower the learning rate, or train in bfloat16 or float32."
            )
        scale = 1.0
        if self.config.clip_norm is not None and norm > self.config.clip_norm:
            scale = self.config.clip_norm / float(norm)
            gradients = [gradient * scale for gradient in gradients]
        self._method.update(gradients, rate, scale)
