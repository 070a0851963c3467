"""The output of a decoder block. Architectures return it in different forms."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

Hidden = Float[Tensor, "batch tokens cols"]


def hidden_state(output: Any) -> Hidden:
    """Return the hidden state in a block's output. Some architectures return a tuple that begins with it."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
