"""The dtypes in which values of other dtypes are trained and summed."""

import torch


def master_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for trained values and gradient sums of a weight with this dtype: float32 or wider."""
    return torch.promote_types(dtype, torch.float32)
