"""Random generators that are determined by a seed and a name."""

import hashlib

import torch


def generator(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a random generator for `seed` and `name`, for example the name of a linear.

    A CPU generator gives the same numbers for any device of the model.
    """
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little", signed=True))
