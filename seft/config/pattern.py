"""The sparsity pattern: where zeros may be in a weight matrix."""

import re
from dataclasses import dataclass
from typing import Any

from seft.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Pattern:
    """Sparsity pattern: at most `kept` nonzeros in every `of` consecutive inputs of a linear. 1 of 1 has no effect."""

    kept: int
    of: int

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> Any:
        """Let pydantic read a pattern from its text and write it as text. Without pydantic, the settings work too."""
        from pydantic_core import core_schema

        def read(value: object) -> "Pattern":
            return value if isinstance(value, cls) else cls.parse(str(value))

        write = core_schema.plain_serializer_function_ser_schema(str)
        return core_schema.no_info_plain_validator_function(read, serialization=write)

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """Return the pattern that `unstructured` or N:M, for example `2:4`, names.

        Raises ConfigError for any other text.
        """
        if text == "unstructured":
            return cls(1, 1)
        numbers = re.fullmatch(r"([1-9]\d{0,3}):([1-9]\d{0,3})", text)
        if not numbers or not int(numbers[1]) < int(numbers[2]):
            raise ConfigError(
                "pattern",
                "must be unstructured, or N:M with 0 < N < M",
                text,
                "Use for example 2:4, which keeps 2 of every 4 weights.",
            )
        return cls(int(numbers[1]), int(numbers[2]))

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}" if self.grouped else "unstructured"

    @property
    def grouped(self) -> bool:
        """True for an N:M pattern, False for `unstructured`."""
        return self.of > 1

    def sparsity(self, requested: float | None) -> float:
        """Return the requested sparsity. For an N:M pattern and None, return the sparsity of the pattern.

        Raises ConfigError if `requested` is None and there is no N:M pattern.
        """
        if requested is not None:
            return requested
        if not self.grouped:
            raise ConfigError(
                "sparsity", "must be given if the pattern is not N:M", None, "Set it, for example to 0.6."
            )
        return 1 - self.kept / self.of


UNSTRUCTURED = Pattern(1, 1)
