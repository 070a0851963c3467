"""How much memory training takes: of the accelerator, or where there is none, of the machine."""

import resource
import sys

import torch

PEAK_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes, in which `ru_maxrss` counts."""


def peak_usage(device: str) -> int:
    """On CUDA, bytes of tensors at their peak since the last call; else of the whole process, at its peak so far."""
    if device.startswith("cuda"):
        most = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return most
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PEAK_UNIT
