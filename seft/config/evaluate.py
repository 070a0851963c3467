"""Settings of the evaluation of a model."""

from dataclasses import dataclass
from typing import Annotated

from typing_extensions import Doc

from seft.config.checks import require_at_least


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """Settings of perplexity: exp of the mean loss per predicted token, over the first windows of a text."""

    tokens: Annotated[
        int, Doc("Tokens per window. If not given, 1024, or the context length of the model if that is less.")
    ] = 1024
    windows: Annotated[int, Doc("Number of windows, taken from the start of the text.")] = 20

    def __post_init__(self) -> None:
        require_at_least("tokens", self.tokens, 2)
        require_at_least("windows", self.windows, 1)
