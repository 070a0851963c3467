"""Measure the peak memory of training, on the accelerator or, without one, of the process."""

import resource
import sys

import torch

PEAK_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes per unit of `ru_maxrss`, the operating system's value of a process's peak memory."""


def peak_usage(device: str) -> int:
    """Return the peak memory in bytes.

    On CUDA, this is the peak of tensors since the last call. Otherwise it is the peak of the process since its start.
    """
    if device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PEAK_UNIT
