"""Few weights of each linear, drawn once and evenly from the nonzeros, are trained; no zero moves.

It is SEFT without its evolution, to compare with. What SEFT adds is in `seft.repair.evolving`.
"""

import warnings

from seft.repair.in_place import InPlace
from seft.repair.linear import RepairedLinear
from seft.repair.method import Work
from seft.seeds import generator


class FixedMask(InPlace):
    """One active set for each linear."""

    def __init__(self, work: Work) -> None:
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        self.linears = {
            name: RepairedLinear(target.weight, work.config.density, generator(work.config.seed, name), work.pattern)
            for name, target in work.targets.items()
        }
        super().__init__(work, self.linears)
