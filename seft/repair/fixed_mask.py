"""Few weights of each linear, drawn once and evenly from the nonzeros, are trained; no zero moves.

It is SEFT without its evolution, to compare with. What SEFT adds is in `seft.repair.evolving`.
"""

import warnings
from collections.abc import Sequence

from torch import Tensor

from seft.products import take_over
from seft.repair import optimizer
from seft.repair.active import Active
from seft.repair.linear import RepairedLinear
from seft.repair.method import Work
from seft.repair.state import State
from seft.repair.window import Candidates
from seft.report import Evolved
from seft.seeds import generator


class FixedMask:
    """One active set for each linear; the merged weights stay in place."""

    def __init__(self, work: Work) -> None:
        self.config = work.config
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        self.linears = {
            name: RepairedLinear(target.weight, self.config.density, generator(self.config.seed, name), work.pattern)
            for name, target in work.targets.items()
        }
        self._release = take_over({work.targets[name]: linear.product for name, linear in self.linears.items()})

    @property
    def trained(self) -> int:
        """The positions of all active sets."""
        return sum(len(linear.active) for linear in self.linears.values())

    @property
    def grown_zeros(self) -> int:
        """Positions that were zero at the start and are nonzero now."""
        return sum(linear.reactivated() for linear in self.linears.values())

    def open(self, _: int) -> None:
        """Nothing is due before a step."""

    def take_gradients(self) -> list[Tensor]:
        """One for each linear, of its active values."""
        return [linear.take_gradient() for linear in self.linears.values()]

    def update(self, gradients: Sequence[Tensor], rate: float) -> None:
        """Step the values, and write them into the weights."""
        for linear, gradient in zip(self.linears.values(), gradients, strict=True):
            optimizer.step(linear.active, gradient, rate, self.config.weight_decay)
            linear.active.write(linear.weight)

    def evolve(self, _: int) -> Evolved | None:
        """Nothing ever moves."""
        return None

    def state(self) -> State:
        """Active sets, removed positions, and the lists of open windows."""
        tensors = {
            f"{name}/{part}": tensor for name, linear in self.linears.items() for part, tensor in _parts(linear).items()
        }
        windows = {
            name: {"count": window.count, "observed": window.observed}
            for name, linear in self.linears.items()
            if (window := linear.window)
        }
        return State(tensors, {"windows": windows})

    def resume(self, state: State) -> None:
        """Into linears that are as pruning left them."""
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in self.linears}
        for key, tensor in state.tensors.items():
            name, part = key.split("/")
            parts[name][part] = tensor.to(self.linears[name].weight.device)
        for name, linear in self.linears.items():
            _restore(linear, parts[name])
            if window := state.facts["windows"].get(name):
                _reopen(linear, parts[name], window["count"], window["observed"])

    def finish(self) -> None:
        """Give the modules their own products back."""
        self._release()


def _parts(linear: RepairedLinear) -> dict[str, Tensor]:
    window = linear.window
    lists = {"active": linear.active} | ({"growth": window.growth, "removal": window.removal} if window else {})
    parts = {f"{name}.{field}": tensor for name, each in lists.items() for field, tensor in each.tensors().items()}
    return {"removed": linear.removed, **parts}


def _restore(linear: RepairedLinear, parts: dict[str, Tensor]) -> None:
    linear.resume(Active(**_fields(parts, "active")), parts["removed"])


def _reopen(linear: RepairedLinear, parts: dict[str, Tensor], count: int, observed: int) -> None:
    growth, removal = (Candidates(**_fields(parts, name)) for name in ("growth", "removal"))
    linear.open_window(count).resume(growth, removal, observed)


def _fields(parts: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.partition(".")[2]: tensor for key, tensor in parts.items() if key.partition(".")[0] == name}
