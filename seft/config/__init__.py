"""Settings of pruning, repair and evaluation as frozen dataclasses that reject contradictions. Needs no torch.

The command line derives its options from these fields (`seft.options`). The `Doc` of a field is its help text.
"""

from seft.config.evaluate import EvaluateConfig
from seft.config.methods import DropDecay, RateSchedule, RepairMethod, Retain, Variant, trains_all
from seft.config.output import FORMATS, OutputFormat, format_of, is_notice, parse_format, published_bytes
from seft.config.pattern import UNSTRUCTURED, Pattern
from seft.config.prune import (
    DEFAULT_PRUNER,
    MOST_SPARSE,
    Allocation,
    CalibrationOrder,
    Compare,
    PruneConfig,
    PruneMethod,
    PruneSchedule,
    Refinement,
    SparsityOf,
)
from seft.config.rates import RATED_WIDTH
from seft.config.repair import RepairConfig, default_batch, default_steps, require_repair_of

__all__ = [
    "DEFAULT_PRUNER",
    "FORMATS",
    "MOST_SPARSE",
    "RATED_WIDTH",
    "UNSTRUCTURED",
    "Allocation",
    "CalibrationOrder",
    "Compare",
    "DropDecay",
    "EvaluateConfig",
    "OutputFormat",
    "Pattern",
    "PruneConfig",
    "PruneMethod",
    "PruneSchedule",
    "RateSchedule",
    "Refinement",
    "RepairConfig",
    "RepairMethod",
    "Retain",
    "SparsityOf",
    "Variant",
    "default_batch",
    "default_steps",
    "format_of",
    "is_notice",
    "parse_format",
    "published_bytes",
    "require_repair_of",
    "trains_all",
]
