"""The best state of a training so far, by the loss that a judge finds, and whether to hope for a better one.

It knows states only as named tensors, and keeps a copy of the best one on the host.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from seft.config import RepairConfig
from seft.errors import ConfigError, TrainError
from seft.repair.state import State
from seft.report import Judged

Judge = Callable[[], float]
"""Tells the loss of the model as it is now, on text that it is not trained on. It changes nothing."""

_MARK = "best:"
"""Before the names of the best state's tensors in a saved state; no name of a target has a colon."""


class Best:
    """What has been judged. ConfigError where a judge is wanted and there is none, or the other way round."""

    def __init__(self, config: RepairConfig, judge: Judge | None) -> None:
        require_held_out(config, judge)
        self._config, self._judge = config, judge
        self.step: int | None = None
        """After which the best state was; None before the first evaluation."""
        self._loss = 0.0
        self._idle = 0
        self.tensors: dict[str, Tensor] = {}

    @property
    def hopeless(self) -> bool:
        """Whether as many evaluations in a row as `patience` says have found nothing better."""
        return 0 < self._config.patience <= self._idle

    def look(self, step: int, tensors: Mapping[str, Tensor]) -> Judged | None:
        """Judge the state after a step, where that is due: at every interval, and after the last step."""
        interval = self._config.evaluate_interval
        if self._judge is None or (step % interval and step < self._config.steps):
            return None
        loss = self._judge()
        if math.isnan(loss):
            raise TrainError(f"a held-out loss must be a number; that after step {step} is {loss}. Mend the judge.")
        if self.step is None or loss < self._loss:
            self.step, self._loss, self._idle = step, loss, 0
            self.tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        else:
            self._idle += 1
        return Judged(step, loss)

    def joined(self, tensors: Mapping[str, Tensor]) -> State:
        """The tensors of the present state and all that is kept here."""
        facts = {"best": {"step": self.step, "loss": self._loss, "idle": self._idle}}
        return State({**tensors, **{_MARK + name: tensor for name, tensor in self.tensors.items()}}, facts)

    def parted(self, state: State) -> dict[str, Tensor]:
        """Take up what was kept; the tensors of the state that was the present one."""
        facts: dict[str, Any] = state.facts["best"]
        self.step, self._loss, self._idle = facts["step"], facts["loss"], facts["idle"]
        marked = {name for name in state.tensors if name.startswith(_MARK)}
        self.tensors = {name.removeprefix(_MARK): state.tensors[name] for name in marked}
        return {name: tensor for name, tensor in state.tensors.items() if name not in marked}


def require_held_out(config: RepairConfig, held_out: object | None) -> None:
    """ConfigError where `config` wants evaluations and there is nothing to judge by, or the other way round."""
    if config.evaluate_interval and held_out is None:
        way_out = "Name a text that is not trained on, or set evaluate_interval to 0."
        raise ConfigError("held_out", "must be given to evaluate on", None, way_out)
    if held_out is not None and not config.evaluate_interval:
        way_out = "Set evaluate_interval, or leave the text out."
        raise ConfigError("held_out", "must be left out where nothing is evaluated", str(held_out), way_out)
