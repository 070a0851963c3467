"""The device that a model runs on."""

import torch

from seft.errors import ConfigError


def choose_device(name: str) -> str:
    """Return `cpu` or `cuda` for the setting `device`. `auto` is CUDA if it is available, else the CPU.

    Raises ConfigError if CUDA is requested and not available.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("device", "must be available", name, "Torch finds no CUDA device. Use cpu or auto.")
    return "cuda" if available and name == "auto" else name.replace("auto", "cpu")
