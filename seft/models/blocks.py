"""Reads the hidden state from the output of a decoder block. Architectures return it in different forms."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

Hidden = Float[Tensor, "batch tokens cols"]


def hidden_state(output: Any) -> Hidden:
    """Return the hidden state in a block's output. It is the first item of a tuple, or of a list (GPT-1)."""
    hidden: Tensor = output[0] if isinstance(output, tuple | list) else output
    return hidden
