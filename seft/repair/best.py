"""Keeps the best state of a training, by its loss on held-out text, and decides about early stopping.

A state is a set of named tensors. A copy of the best state is kept in host memory. If there are several processes, only
the first process keeps it, so only the first process can save or finish a repair with evaluations.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from seft.config import RepairConfig
from seft.errors import ConfigError, TrainError
from seft.models.targets import SPLIT
from seft.repair.processes import broadcast, is_first
from seft.repair.state import State
from seft.report import Evaluated

HeldOutLoss = Callable[[], float]
"""Function that returns the loss of the model's present weights on held-out text, without changing the model."""

_MARK = "best:"
"""Prefix of the best state's tensors in a saved state. Target names contain no colon."""


class Best:
    """The held-out evaluations so far, and the best state. A state from before the step `first` is never the best.

    Raises ConfigError if `config` requires evaluations and `held_out_loss` is None, or if it requires none and
    `held_out_loss` is given.
    """

    def __init__(self, config: RepairConfig, held_out_loss: HeldOutLoss | None, first: int = 0) -> None:
        require_held_out(config, held_out_loss)
        self._config, self._held_out_loss, self._first = config, held_out_loss, first
        self.step: int | None = None
        """Step of the best state; None before the first evaluation."""
        self._loss = 0.0
        self._idle = 0
        self.tensors: dict[str, Tensor] = {}

    @property
    def exhausted(self) -> bool:
        """True if none of the last `patience` evaluations was better than the best. False if `patience` is 0."""
        return 0 < self._config.patience <= self._idle

    def evaluate(self, step: int, tensors: Callable[[], Mapping[str, Tensor]]) -> Evaluated | None:
        """Evaluate the model after a step if an evaluation is due, and keep `tensors` if the loss is the lowest so far.

        An evaluation is due at each multiple of the interval from the step `first` on, and after the last step. Returns
        None at other steps. Raises TrainError if the loss is not a number.
        """
        interval = self._config.evaluate_interval
        if self._held_out_loss is None or step < self._first or (step % interval and step < self._config.steps):
            return None
        loss = broadcast(self._held_out_loss())  # all processes must decide the same
        if math.isnan(loss):
            raise TrainError(
                f"a held-out loss must be a number; after step {step} it is {loss}."
                " Check the held-out text and the model."
            )
        if self.step is None or loss < self._loss:
            self.step, self._loss, self._idle = step, loss, 0
            self.tensors = {}  # freed before the next copy is made
            present = dict(tensors()) if is_first() or SPLIT else {}  # all processes gather split weights
            if is_first():
                for name in list(present):
                    self.tensors[name] = present.pop(name).detach().to("cpu", copy=True)
        else:
            self._idle += 1
        return Evaluated(step, loss)

    def with_best(self, tensors: Mapping[str, Tensor]) -> State:
        """Return the state to save: the present tensors, the best ones, and the evaluation results."""
        facts = {"best": {"step": self.step, "loss": self._loss, "idle": self._idle}}
        return State({**tensors, **{_MARK + name: tensor for name, tensor in self.tensors.items()}}, facts)

    def split(self, state: State) -> dict[str, Tensor]:
        """Load the best tensors and the evaluation results from a saved state. Returns its other tensors.

        The other tensors are the state at the step when it was saved.
        """
        facts: dict[str, Any] = state.facts["best"]
        self.step, self._loss, self._idle = facts["step"], facts["loss"], facts["idle"]
        marked = {name for name in state.tensors if name.startswith(_MARK)}
        if is_first():
            self.tensors = {name.removeprefix(_MARK): state.tensors[name] for name in marked}
        return {name: tensor for name, tensor in state.tensors.items() if name not in marked}


def require_held_out(config: RepairConfig, held_out: object | None) -> None:
    """Raise ConfigError if `config` evaluates and `held_out` is None, or if it does not and `held_out` is given."""
    if config.evaluate_interval and held_out is None:
        way_out = "Give a text that is not trained on, or set evaluate_interval to 0."
        raise ConfigError("held_out", "must be given if evaluate_interval is set", None, way_out)
    if held_out is not None and not config.evaluate_interval:
        way_out = "Set evaluate_interval, or give no held-out text."
        raise ConfigError("held_out", "must not be set if evaluate_interval is 0", str(held_out), way_out)
