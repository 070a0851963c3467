"""OWL (Yin et al. 2023, arXiv 2310.05175): blocks with more outliers keep more weights.

An outlier is a weight of the dense model whose importance by Wanda is more than five times the mean of its block.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from seft.prune.wanda import importance

OUTLIER = 5.0  # M in the paper
REACH = 0.08  # lambda in the paper; as in its code, the sparsities of two blocks differ by at most twice this

WeightAndNorms = tuple[Float[Tensor, "rows cols"], Float[Tensor, "cols"]]
"""Weight matrix, and the norms of its input columns."""


def outlier_ratio(block: Sequence[WeightAndNorms]) -> float:
    """Return the fraction of outliers among all weights of one block (equation 1)."""
    weights = sum(weight.numel() for weight, _ in block)
    total = sum(importance(weight, norms).double().sum() for weight, norms in block)
    threshold = OUTLIER * total / weights
    return sum(int((importance(weight, norms) > threshold).sum()) for weight, norms in block) / weights


def block_sparsities(ratios: Sequence[float], sparsity: float) -> list[float]:
    """Return the sparsity of each block, with `sparsity` as the mean (section 3.3).

    Blocks with more outliers get fewer zeros.
    """
    values = torch.tensor(ratios, dtype=torch.float64)
    spread = values.max() - values.min()
    if not spread:
        return [sparsity] * len(ratios)
    kept = (values - values.min()) / spread * 2 * REACH
    sparsities: list[float] = (sparsity - (kept - kept.mean())).tolist()
    return sparsities
