"""Memory use of training: of the accelerator, or of the process on a machine without one."""

import resource
import sys

import torch

PEAK_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes per unit of `ru_maxrss`."""


def peak_usage(device: str) -> int:
    """Return peak memory in bytes: on CUDA of tensors since the last call, else of the whole process so far."""
    if device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PEAK_UNIT
