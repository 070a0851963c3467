"""AlphaPruning (Lu et al. 2024, arXiv 2410.10912): blocks whose spectra have heavier tails lose fewer weights.

According to the paper, blocks with heavy tails are better trained. The tail of the eigenvalues of a weight matrix is
fitted by a power law. A small exponent means a heavy tail. Needs no calibration text.
"""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

REACH = 0.2  # epsilon in the paper: sparsities lie in 1 - epsilon to 1 + epsilon times the requested one
BINS = 100


def alpha(weight: Float[Tensor, "rows cols"]) -> float:
    """Return PL_Alpha_Hill: the Hill estimate of the power-law exponent of the eigenvalues of `W^T W` (equation 2).

    The tail begins at the peak of the histogram of the eigenvalues' logarithms (the "fix-finger" choice). The result is
    infinite if there is no tail, as in a matrix of rank one.
    """
    spectrum = torch.linalg.svdvals(weight.float()).cpu().double().square()
    logs = spectrum[spectrum > spectrum.max() * torch.finfo(torch.float32).eps ** 2].log10().sort().values
    if len(logs) < 2 or logs[0] == logs[-1]:
        return torch.inf
    edges = torch.linspace(float(logs[0]), float(logs[-1]), BINS + 1, dtype=torch.float64)
    peak = edges[torch.histc(logs, BINS).argmax()]
    tail = logs[logs >= peak] * torch.tensor(10.0, dtype=torch.float64).log()
    log_ratios = float((tail[1:] - tail[0]).sum())
    return 1 + (len(tail) - 1) / log_ratios if log_ratios else torch.inf


def block_alpha(weights: Iterable[Float[Tensor, "rows cols"]]) -> float:
    """Return the exponent of a block: the mean over its weight matrices."""
    exponents = [alpha(weight) for weight in weights]
    return sum(exponents) / len(exponents)


def block_weights(alphas: Sequence[float]) -> list[float]:
    """Return the sparsities of the blocks relative to each other (equation 3). A small exponent gives few zeros.

    A block without a finite exponent is treated like the block with the largest exponent.
    """
    exponents = torch.tensor(alphas, dtype=torch.float64)
    finite = exponents[exponents.isfinite()]
    if not len(finite) or finite.max() == finite.min():
        return [1.0] * len(alphas)
    place = (exponents.clamp(max=finite.max()) - finite.min()) / (finite.max() - finite.min())
    weights: list[float] = (1 - REACH + 2 * REACH * place).tolist()
    return weights
