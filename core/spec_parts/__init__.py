"""The parts of a job's request: how the model is pruned, repaired, evaluated and published."""

from typing import Any

from core.spec_parts.evaluate import EvaluateSpec
from core.spec_parts.output import OutputSpec, PushSpec, Repository
from core.spec_parts.prune import CalibrationSpec, PruneSpec
from core.spec_parts.repair import DERIVED, RepairMethod, RepairSpec

__all__ = [
    "CPU_SETTINGS",
    "DERIVED",
    "CalibrationSpec",
    "EvaluateSpec",
    "OutputSpec",
    "PruneSpec",
    "PushSpec",
    "RepairMethod",
    "RepairSpec",
    "Repository",
]

CPU_SETTINGS: dict[str, dict[str, Any]] = {
    "prune": {"calibration": {"samples": 8, "tokens": 512}},
    "repair": {"steps": 14, "retain_tokens": 4096},
    "evaluate": {"windows": 8, "tokens": 512},
}
"""Fields with which a small model is repaired in minutes on a CPU. The defaults are for a GPU."""
