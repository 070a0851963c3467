"""Which dtype computes and sums values of another dtype."""

import torch


def master_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that holds trained values and gradient sums of a `dtype` weight: float32 or wider."""
    return torch.promote_types(dtype, torch.float32)
