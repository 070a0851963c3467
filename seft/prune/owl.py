"""OWL (Yin et al. 2023, arXiv 2310.05175): blocks with more outliers among their weights' importances keep more.

An outlier is a weight whose Wanda importance, in the dense model, is more than five times its block's mean.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from seft.prune.wanda import importance

OUTLIER = 5.0  # M in the paper
REACH = 0.08  # lambda in the paper: as in its code, the shares of two blocks differ by at most twice this

Judged = tuple[Float[Tensor, "rows cols"], Float[Tensor, "cols"]]
"""A weight and the norms of its input columns."""


def outlier_ratio(block: Sequence[Judged]) -> float:
    """The share of outliers among the weights of one block (equation 1)."""
    weights = sum(weight.numel() for weight, _ in block)
    total = sum(importance(weight, norms).double().sum() for weight, norms in block)
    threshold = OUTLIER * total / weights
    return sum(int((importance(weight, norms) > threshold).sum()) for weight, norms in block) / weights


def block_sparsities(ratios: Sequence[float], sparsity: float) -> list[float]:
    """The share of zeros of each block, with the asked mean (section 3.3): the more outliers, the fewer zeros."""
    found = torch.tensor(ratios, dtype=torch.float64)
    spread = found.max() - found.min()
    if not spread:
        return [sparsity] * len(ratios)
    kept = (found - found.min()) / spread * 2 * REACH
    shares: list[float] = (sparsity - (kept - kept.mean())).tolist()
    return shares
