"""Random generators whose seed depends only on a number and a name."""

import hashlib

import torch


def generator(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the generator for `name`, for example a layer name.

    A CPU generator gives the same numbers whatever device the model is on.
    """
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little", signed=True))
