"""The training loop that all repair methods share. It saves and resumes at any step.

The method decides which values are trained (`seft.repair.methods`). The loop reads the text, computes the loss and
takes the steps. The file format of a saved state is in `seft.repair.state`. The loop does not depend on the service.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from seft.config import PruneConfig, RepairConfig, require_repair_of
from seft.data.packing import Packed, cut_windows
from seft.data.text import require_known_tokens
from seft.distill import Objective, make_objective
from seft.errors import ConfigError, StateError, TrainError
from seft.models.products import replace_forwards
from seft.models.targets import decoder_blocks, target_linears
from seft.repair import schedule, state
from seft.repair.best import Best, HeldOutLoss
from seft.repair.method import Work
from seft.repair.methods import make_method
from seft.repair.processes import own_windows, process_count, sum_each_over_processes, sum_over_processes
from seft.repair.swaps import CHECK_WINDOWS
from seft.report import Evaluated, Evolved, Phase, Progress, Reporter, Step, silent
from seft.retain import require_retained


@dataclass(frozen=True, slots=True)
class RepairResult:
    """How a repair ended: its last step, the step whose weights were kept, zeros that became nonzero, peak rate."""

    last_step: int
    kept_step: int
    grown_zeros: int
    peak_rate: float


class Repair:
    """Repairs the pruned weights of `model` in place by training on `text`.

    `text` is packed windows (sequences of tokens of equal length), or one row of tokens, which is cut into windows and
    trained on completely. `pruned` is how the model was pruned. `teacher` is the dense model; it is required if
    `config` distils. `retained` is windows with the predictions of the dense model, of the same length as the others;
    it is required if `config` retains. `held_out_loss` returns the loss on held-out text; it is required if `config`
    evaluates. It must return the same loss for the same weights, at any time and in every process.

    Until `finish`, every parameter is frozen. Only the values of the method are trained, and the norms and biases if
    `config` says so. At the end no linear has more nonzeros than at the start, and all follow the pattern of `pruned`.
    With the schedule `gradual` of `pruned`, the model has fewer zeros at the start, and the sparsity of `pruned` at the
    end. Raises DataError if the text is shorter than one window, and ConfigError if model, method and settings do not
    fit together.
    """

    def __init__(
        self,
        model: Any,
        text: Packed | Int[Tensor, "tokens"],
        config: RepairConfig,
        *,
        pruned: PruneConfig | None = None,
        teacher: Any | None = None,
        retained: Packed | None = None,
        held_out_loss: HeldOutLoss | None = None,
    ) -> None:
        config.require_processes(process_count())
        require_retained(config, retained)
        if pruned:
            require_repair_of(pruned, config)
        else:
            config.require_swap_after(0)
        self._rise_end = pruned.rise_end(config.steps) if pruned else 0
        # A state from before the end of the rise is better only because it has fewer zeros.
        self._best = Best(config, held_out_loss, self._rise_end)
        self.config = config
        self.step = 0
        self._windows = Packed.of(cut_windows(text, config.sequence_tokens) if isinstance(text, Tensor) else text)
        require_known_tokens(self._windows.tokens, model)
        text, checked = self._windows, None
        if config.swap_tokens:
            self._windows, checked = _split_checked(text)
        self._device: torch.device = model.device
        targets = target_linears(model)
        self._objective = make_objective(model, config, teacher)
        teacher_targets = {} if teacher is None else target_linears(teacher)
        self._retained = retained
        self._fingerprint = state.fingerprint(targets, text, pruned, teacher_targets, retained)
        check = partial(_mean_loss, self._objective, checked, config.micro_batch, self._device) if checked else None
        self.peak_rate = config.peak_rate(model.config.get_text_config().hidden_size)
        self._rated = replace(config, learning_rate=self.peak_rate)
        work = Work(model, targets, self._rated, self._windows.text, pruned, check)
        self._trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._freeze()
        try:
            self._method = make_method(work)
        except BaseException:
            self._freeze(frozen=False)
            raise
        blocks = decoder_blocks(model) if config.activation_checkpointing else ()
        self._release = replace_forwards({block: _recomputed(block.forward) for block in blocks})

    @property
    def grown_zeros(self) -> int:
        """Number of weights that were zero when pruning ended and are nonzero now. Also valid after `finish`."""
        return self._method.grown_zeros

    @property
    def done(self) -> bool:
        """True if all steps are done, or if the last `patience` evaluations found no lower held-out loss."""
        return self.step >= self.config.steps or self._best.exhausted

    @property
    def kept_step(self) -> int:
        """Step whose weights `finish` leaves in the model: the best evaluated step, else the last one taken."""
        return self.step if self._best.step is None else self._best.step

    @property
    def trained_values(self) -> int:
        """Number of trained values."""
        return self._method.trained_values

    def run(self, report: Reporter = silent) -> None:
        """Take the remaining steps. An exception from `report` is not caught; it always comes between two steps."""
        while not self.done:
            for item in self.advance():
                report(item)
            report(Progress(Phase.TRAINING, self.step, self.config.steps))

    def advance(self) -> list[Step | Evolved | Evaluated]:
        """Take one optimizer step, and then the topology event and the evaluation that are due.

        Returns the reports of all. Raises TrainError if the loss or the gradient is not finite. The weights are then
        those after the previous step. With `density: all` this holds for the loss alone: a gradient that is not finite
        may come after other linears have taken their step. Load a saved state then.
        """
        began = time.perf_counter()
        step = self.step + 1
        self._method.before_step(step)
        loss = self._accumulate(step)
        rate = schedule.learning_rate(self._rated, step)
        self._update(step, loss, rate)
        self.step = step
        speed = self.config.batch_tokens / (time.perf_counter() - began)
        with torch.no_grad():
            evolved = self._method.evolve(step)
            judged = self._best.evaluate(step, self._method.tensors)
        reports = (Step(step, loss, rate, speed), evolved, judged)
        return [item for item in reports if item is not None]

    @torch.no_grad()
    def finish(self, report: Reporter = silent) -> RepairResult:
        """Write the weights of `kept_step` into the model, restore its modules, and unfreeze its parameters.

        If the sparsity rises during training and has not reached its end, it is raised at once. Raises TrainError if
        it has to rise and no step was taken. Returns how the repair ended.
        """
        if self._rise_end and self.step == 0:
            raise TrainError("the sparsity must rise before the end; no step was taken. Take at least one step.")
        if self.kept_step != self.step:
            self._method.resume(self._best.tensors)
        self._release()
        self._method.finish(report)
        self._freeze(frozen=False)
        return RepairResult(self.step, self.kept_step, self.grown_zeros, self.peak_rate)

    def save(self, folder: Path) -> None:
        """Save everything that is needed to resume after this step, except the pruned weights."""
        now = self._best.with_best(self._method.tensors())
        now.facts["step"] = self.step
        state.save(folder, now, self.config, self._fingerprint)

    def load(self, folder: Path) -> None:
        """Continue from a saved state. Must be called before the first step.

        Raises StateError if a step was taken, or if the state was saved with other pruned weights, text or settings.
        """
        if self.step:
            raise StateError(
                f"a state must be loaded into a new repair; this repair is at step {self.step}. Create a new one."
            )
        saved = state.load(folder, self.config, self._fingerprint)
        self._method.resume(self._best.split(saved))
        self.step = int(saved.facts["step"])

    def _freeze(self, *, frozen: bool = True) -> None:
        """Freeze the parameters that the caller could train, or undo it."""
        for parameter in self._trainable:
            parameter.requires_grad_(not frozen)

    def _accumulate(self, step: int) -> float:
        """Accumulate the gradients of the mean loss over all predicted tokens of a step, by micro-batches.

        Returns the loss.
        """
        windows, predictions = self._batch(step)
        loss = torch.zeros((), dtype=torch.float64)
        for batch in windows.split(self.config.micro_batch):
            part = self._objective(batch[own_windows()].to(self._device)) / predictions
            loss += sum_over_processes(part.detach().clone()).cpu()
            if not loss.isfinite():
                break  # The backward pass of some methods changes weights.
            part.backward()  # type: ignore[no-untyped-call]
            self._method.after_micro_batch()
        return float(loss)

    def _batch(self, step: int) -> tuple[Packed, float]:
        """Return the windows of a step, and the number by which the sum of their losses is divided.

        The mean losses of the user's text and of the retained text are weighted by their numbers of windows, because in
        some texts only few tokens of a window are predicted.
        """
        own = self._windows[schedule.rows_of_step(self.config, len(self._windows), step)]
        if self._retained is None:
            return own, own.predictions
        kept = self._retained[schedule.retained_rows_of_step(self.config, len(self._retained), step)]
        windows = own + kept
        if not len(own) or not len(kept):
            return windows, windows.predictions
        assert windows.teacher
        weight = (len(kept) / kept.predictions) / (len(own) / own.predictions)
        teacher = replace(windows.teacher, weight=weight)
        return replace(windows, teacher=teacher), own.predictions * len(windows) / len(own)

    @torch.no_grad()
    def _update(self, step: int, loss: float, rate: float) -> None:
        gradients = self._method.take_gradients()
        sum_each_over_processes(gradients)
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        if not math.isfinite(loss + float(norm)):
            raise TrainError(
                f"loss and gradient must be finite; step {step} has loss {loss} and gradient norm {float(norm)}."
                " Lower the learning rate."
            )
        scale = 1.0
        if self.config.clip_norm is not None and norm > self.config.clip_norm:
            scale = self.config.clip_norm / float(norm)
            gradients = [gradient * scale for gradient in gradients]
        self._method.update(gradients, rate, scale)


@torch.no_grad()
def _mean_loss(objective: Objective, windows: Packed, micro_batch: int, device: torch.device) -> float:
    """Return the mean loss of the predicted tokens of these windows."""
    losses = [objective(batch.to(device)) for batch in windows.split(micro_batch)]
    return float(torch.stack(losses).sum()) / max(1, windows.predictions)


def _split_checked(windows: Packed) -> tuple[Packed, Packed]:
    """Return the windows to train on, and the last ones, on which the loss is compared before and after each swap."""
    if len(windows) <= CHECK_WINDOWS:
        rule = f"must be 0 if the text has only {len(windows)} windows, because {CHECK_WINDOWS} are held out"
        raise ConfigError("swap_tokens", rule, len(windows), "Give a longer text.", lead="the number of windows is")
    return windows[:-CHECK_WINDOWS], windows[-CHECK_WINDOWS:]


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward function whose activations are computed again in the backward pass. The bits are the same.

    This is activation checkpointing (Chen et al. 2016, arXiv 1604.06174).
    """

    def run(*args: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **options)
        # No random numbers are drawn: the model is in evaluation mode.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **options)

    return run
