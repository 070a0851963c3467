"""Where randomness comes from: a generator whose seed depends on a number and a name, and on nothing else."""

import hashlib

import torch


def generator(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator for `name`, for instance a layer's; on the CPU it gives the same whatever the model is on."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little", signed=True))
