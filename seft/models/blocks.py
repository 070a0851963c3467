"""The output of a decoder block, which architectures return in different forms."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

Hidden = Float[Tensor, "batch tokens cols"]


def first(output: Any) -> Hidden:
    """Return the hidden state of a block's output, which is a tuple in some architectures."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
