"""Numbers of zeros of a model: per target (a linear layer that is pruned), over all targets, and over the model."""

from dataclasses import dataclass
from typing import Any, cast

from pydantic import TypeAdapter, computed_field


@dataclass(frozen=True, slots=True)
class Count:
    """Number of zeros, and number of all weights. -0.0 counts as zero."""

    zeros: int
    weights: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def share(self) -> float:
        """Fraction of zeros; 0 if there are no weights."""
        return self.zeros / self.weights if self.weights else 0.0

    def __add__(self, other: "Count") -> "Count":
        return Count(self.zeros + other.zeros, self.weights + other.weights)


@dataclass(frozen=True, slots=True)
class Sparsity:
    """Counts of zeros per target (`layers`), over all targets (`linears`) and over all saved weights (`model`).

    A weight that is saved once and used twice is counted once.
    """

    layers: dict[str, Count]
    linears: Count
    model: Count

    @property
    def by_name(self) -> dict[str, Count]:
        """All counts by the name of their part."""
        return {"linears": self.linears, "model": self.model, **self.layers}

    def data(self) -> dict[str, Any]:
        """Return the counts as JSON data. Each also has the computed `share`, the fraction of zeros."""
        return cast("dict[str, Any]", TypeAdapter(Sparsity).dump_python(self, mode="json"))
