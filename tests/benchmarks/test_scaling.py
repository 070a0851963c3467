"""The formulas for large models agree with real jobs of small ones, within the bounds that docs/scaling.md states."""

from pathlib import Path
from typing import Any

import pytest

from core.states import Phase

OPERATIONS = {
    (Phase.PRUNING, "all nonzeros"): (-0.015, 0.005),
    (Phase.PRUNING, "0.5 %"): (-0.015, 0.005),
    (Phase.TRAINING, "all nonzeros"): (0.0, 0.14),
    (Phase.TRAINING, "0.5 %"): (0.3, 0.34),
    (Phase.EVALUATING, "all nonzeros"): (-0.015, 0.0),
    (Phase.EVALUATING, "0.5 %"): (-0.015, 0.0),
}
"""Smallest and largest deviation of the formula from the count, as a fraction of the count."""
MEMORY = {Phase.PRUNING: (-0.13, 0.13), Phase.TRAINING: (-0.14, 0.14), Phase.EVALUATING: (-0.41, 0.0)}
"""The same for the bytes."""


def test_the_formulas_are_within_the_stated_bounds_at_four_sizes() -> None:
    from benchmarks.scaling_check import METHODS, RESULTS, SIZES, by_formula, read_rows

    measured = {(row.hidden, row.method, row.phase): row for row in read_rows(RESULTS)}
    assert len(SIZES) == 4
    assert len(measured) == len(SIZES) * len(METHODS) * len(MEMORY)
    for hidden in SIZES:
        for method in METHODS:
            for row in by_formula(hidden, method):
                real = measured[hidden, method, row.phase]
                least, most = OPERATIONS[row.phase, method]
                assert least <= row.operations / real.operations - 1 <= most, row
                least, most = MEMORY[row.phase]
                assert least <= row.memory / real.memory - 1 <= most, row


def test_a_job_computes_as_many_operations_as_when_they_were_counted(tmp_path: Path) -> None:
    from benchmarks.scaling_check import RESULTS, count_flops, read_rows, spec_of, write_model

    write_model(tmp_path, 128)
    counted = count_flops(tmp_path, spec_of("all nonzeros"))
    for row in read_rows(RESULTS):
        if (row.hidden, row.method) == (128, "all nonzeros"):
            assert counted[row.phase] == pytest.approx(row.operations, rel=0.02), row.phase


def test_the_parts_of_the_memory_are_the_memory_of_the_service() -> None:
    from benchmarks.scaling import JOBS, MODELS, _dimensions, _spec
    from core.estimate.footprint import memory_by_phase
    from core.estimate.pruning_memory import pruning_parts
    from core.estimate.training_memory import training_parts

    for name in MODELS:
        for job in JOBS:
            model, spec = _dimensions(name), _spec(job)
            phases: Any = memory_by_phase(model, spec)
            assert training_parts(model, spec).device == phases[Phase.TRAINING].device
            assert phases[Phase.PRUNING].device > 2 * model.parameters + sum(pruning_parts(model, spec))
