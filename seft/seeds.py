"""Where randomness comes from: a generator whose seed depends on a number and a name, and on nothing else."""

import hashlib

import torch


def generator(seed: int, name: str) -> torch.Generator:
    """The generator for `name`, for instance a layer's; on the CPU, so that it gives the same on every device."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
