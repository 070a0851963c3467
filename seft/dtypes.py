"""The dtypes in which values of other dtypes are trained and summed."""

import torch


def master_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for trained values and gradient sums of a weight with this dtype: float32 or wider."""
    return torch.promote_types(dtype, torch.float32)


def moment_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for Adam's moments of trained values of a weight with this dtype: bfloat16 if it has 16 bits.

    float16 has too few exponents for squared gradients.
    """
    return torch.bfloat16 if dtype.itemsize == 2 else dtype
