"""What every pruner can do, whichever way it judges."""

from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from seft.config import Compare, PruneConfig
from seft.prune.mask import Rule


@runtime_checkable
class Pruner(Protocol):
    """Prunes one weight, once. It reads the weight and leaves it as it is; zeros stay zeros."""

    def see(self, inputs: Float[Tensor, "*batch cols"]) -> None:
        """Learn from inputs that the weight's columns meet."""

    def pruned(self) -> Float[Tensor, "rows cols"]:
        """The weight to go on with; PruneError where the inputs do not let it go on."""


class Method(Pruner, Protocol):
    """A pruner that judges for itself, and what its paper says of that: `compare` is what `auto` stands for."""

    needs_text: ClassVar[bool]
    compare: ClassVar[Compare]

    def __init__(self, weight: Float[Tensor, "rows cols"], rule: Rule, config: PruneConfig) -> None: ...
