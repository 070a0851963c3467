"""How a pruned model is repaired: the method, its variant, the schedules, and the text that is retained."""

from enum import StrEnum


class RepairMethod(StrEnum):
    """Repair method: which values are trained. A model that is only pruned has no RepairConfig."""

    SEFT = "seft"
    FIXED_MASK = "fixed_mask"
    MASKED_FULL = "masked_full"
    MASKED_LORA = "masked_lora"
    SPP = "spp"
    LORA_REPRUNE = "lora_reprune"

    @property
    def keeps_zeros(self) -> bool:
        """True if every zero of the pruned model stays zero during repair."""
        return self not in {RepairMethod.SEFT, RepairMethod.LORA_REPRUNE}


class Variant(StrEnum):
    """Rules of the method `seft`: those of this library, or those of the paper (Xiao et al., arXiv 2505.24037).

    docs/method.md compares them.
    """

    IMPROVED = "improved"
    PUBLISHED = "published"


class RateSchedule(StrEnum):
    """How the learning rate changes after the warm-up."""

    LINEAR = "linear"
    COSINE = "cosine"
    CONSTANT = "constant"


class DropDecay(StrEnum):
    """How the drop rate, the fraction that a topology event replaces, falls to 0 at the last step."""

    LINEAR = "linear"
    COSINE = "cosine"


class Retain(StrEnum):
    """Text on which the model learns what the dense model predicts, so that it does not lose its other abilities.

    `written` is text that the dense model writes itself before it is pruned. `dataset` is a text of the user.
    """

    NONE = "none"
    WRITTEN = "written"
    DATASET = "dataset"


DEFAULT_DENSITY = 0.005
"""Density of the methods that do not train all nonzeros, if it is not given."""


def trains_all(density: float | str, method: str, variant: str) -> bool:
    """Return whether these settings train all nonzeros in place. `auto` does for `seft` with the variant `improved`."""
    if density == "auto":
        return method == RepairMethod.SEFT and variant == Variant.IMPROVED
    return density == "all"
