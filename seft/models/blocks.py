"""Reads the hidden state from the output of a decoder block. Architectures return it in different forms."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

Hidden = Float[Tensor, "batch tokens cols"]


def hidden_state(output: Any) -> Hidden:
    """Return the hidden state in a block's output. In a tuple, and in a list as of GPT-1, it is the first item."""
    hidden: Tensor = output[0] if isinstance(output, tuple | list) else output
    return hidden
