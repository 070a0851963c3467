"""Random numbers and generators that are determined by a seed and a name."""

import hashlib

import torch


def number(seed: int, name: str) -> int:
    """Return a whole number of 64 bits, with sign, for `seed` and `name`, for example the name of a linear."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def generator(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a random generator for `number(seed, name)`.

    A CPU generator gives the same numbers for any device of the model.
    """
    return torch.Generator(device).manual_seed(number(seed, name))
