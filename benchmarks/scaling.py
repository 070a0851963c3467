"""How much memory and time would a model of 7B, 13B or 70B need? Tables by formula; nothing is run.

    python -m benchmarks.scaling

The service estimates a job with the same formulas (`core.estimate`). `benchmarks.scaling_check` compares
them with real runs of small models. docs/scaling.md has the tables and says what they leave out.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from benchmarks.scaling_check import RESULTS, by_formula, read_rows
from benchmarks.shapes import config_of, dimensions_of
from core.capability import Capability
from core.estimate.calibration import count_operations, pruning_operations
from core.estimate.fitting import USABLE_FRACTION, fit
from core.estimate.footprint import memory_by_phase, retained_bytes
from core.estimate.pruning_memory import pruning_parts
from core.estimate.training_memory import training_parts
from core.request_fields import EXAMPLE_DATASET
from core.specs import JobSpec
from core.states import Phase
from seft.models.dimensions import Dimensions
from tests.claims import LARGEST

MODELS = ("7B", "13B", "70B")
CARDS = 8
CARD = Capability("cuda", "a card of 80 GB", 80 * 10**9, LARGEST)
BFLOAT16_PEAK, FLOAT32_PEAK = 989e12, 67e12
"""Operations per second of an NVIDIA H100 SXM by its data sheet: dense bfloat16, and float32 without tensor cores."""
BFLOAT16_PART, FLOAT32_PART = 0.4, 0.7
"""Assumed fractions of these peaks. They were not measured."""
BANDWIDTH, BANDWIDTH_PART = 3.35e12, 0.7
"""Bytes per second of the memory of an H100 SXM by its data sheet, and the assumed fraction."""
UPDATE_BYTES = 14
"""Bytes that the three passes of `seft.repair.passes` read and write per weight, with weight and gradient in bfloat16.
The first pass reads both and writes the gradient, the second reads the gradient, the third reads both and writes the
weight."""
SHARED: dict[str, Any] = {"model": "model", "dataset": EXAMPLE_DATASET, "sparsity": 0.6, "dtype": "bfloat16"}
JOBS: dict[str, dict[str, Any]] = {"all nonzeros": {}, "0.5 %": {"density": 0.005}}
"""Fields of the repair that differ from the defaults. All jobs also compute activations again, and run in bfloat16."""
GB, TERA = 1e9, 1e12


def main() -> None:
    """Print all tables."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sys.stdout.write("\n".join(make() for make in TABLES))


@cache
def _dimensions(name: str) -> Dimensions:
    return dimensions_of(config_of(name))


def _spec(job: str, devices: int = 1, *, sharded: bool = False) -> JobSpec:
    """Return a job. On several devices, each reads one window of a step."""
    windows = {"batch_tokens": 512 * devices, "micro_batch": devices} if devices > 1 else {}
    repair = {"activation_checkpointing": True, **JOBS[job], **windows}
    return JobSpec.model_validate({**SHARED, "devices": devices, "sharded": sharded, "repair": repair})


def _jobs() -> Iterator[tuple[str, Dimensions, str, JobSpec]]:
    """Yield each combination of a model and a job as (name of the model, model, name of the job, job)."""
    for name in MODELS:
        for job in JOBS:
            yield name, _dimensions(name), job, _spec(job)


def memory_table() -> str:
    """Return the table of the bytes of pruning and of training by part, on one card, in GB."""
    head = ("model", "trained", "weights", "hidden states", "statistics", "pruning", "state", "saved", "step")
    rows = []
    for name, model, job, spec in _jobs():
        states, statistics = pruning_parts(model, spec)
        parts, phases = training_parts(model, spec), memory_by_phase(model, spec)
        pruning, training = (phases[phase].device for phase in (Phase.PRUNING, Phase.TRAINING))
        pruned = (parts.weights, states, statistics, pruning)
        sizes = (*pruned, parts.state, parts.saved, parts.work, training)
        rows.append((name, job, *map(_gb, sizes)))
    return _table((*head, "training"), rows)


def fit_table() -> str:
    """Return the table that says whether the jobs fit one card of 80 GB, and how much memory is left or lacking."""
    rows = []
    for name, model, job, spec in _jobs():
        found = fit(model, spec, CARD)
        spare = USABLE_FRACTION * CARD.memory - found.needed_bytes
        answer = f"fits, {_gb(spare)} GB to spare" if found.fits else f"{_gb(-spare)} GB too much"
        host = memory_by_phase(model, spec)
        rows.append(
            (
                name,
                job,
                str(found.phase),
                _gb(found.needed_bytes),
                answer,
                _gb(max(each.host for each in host.values())),
                f"{retained_bytes(spec) / 1e6:.0f}",
            )
        )
    head = ("model", "trained", "largest phase", "GB", "in 90 % of 80 GB", "host, GB", "predictions, MB")
    return _table(head, rows)


def cards_table() -> str:
    """Return the table of the memory on each card of eight, with one window of a step per card."""
    rows = []
    for name, model, job, _ in _jobs():
        found = [fit(model, _spec(job, CARDS, sharded=split), replace(CARD, devices=CARDS)) for split in (False, True)]
        cells = ((str(each.phase), _gb(each.needed_bytes), _yes(each.fits)) for each in found)
        rows.append((name, job, *(cell for of_one in cells for cell in of_one)))
    head = ("model", "trained", "largest phase", "GB", "fits", "largest phase, sharded", "GB", "fits")
    return _table(head, rows)


def operations_table() -> str:
    """Return the table of the operations of a default job by part, in 10^15 (PFLOP)."""
    rows = []
    for name in MODELS:
        model, spec = _dimensions(name), _spec("all nonzeros")
        parts = pruning_operations(spec, model)
        phases = count_operations(spec, model)
        counts = (
            *(parts[part] for part in ("passes", "statistics", "solving")),
            *(phases[phase] for phase in (Phase.WRITING, Phase.TRAINING, Phase.EVALUATING)),
        )
        rows.append((name, *(f"{count / 1e15:,.0f}" for count in counts)))
    return _table(("model", "passes", "statistics", "solving", "writing", "training", "evaluating"), rows)


def time_table() -> str:
    """Return the table of the minutes of a default job by phase, from its operations and the bytes of its updates."""
    rows = []
    for name in MODELS:
        model, spec, shared = _dimensions(name), _spec("all nonzeros"), _spec("all nonzeros", CARDS)
        parts, phases = pruning_operations(spec, model), count_operations(spec, model)
        fast, slow = BFLOAT16_PEAK * BFLOAT16_PART, FLOAT32_PEAK * FLOAT32_PART
        pruning = parts["passes"] / fast + (parts["statistics"] + parts["solving"]) / slow
        writing, training, evaluating = (
            phases[each] / fast for each in (Phase.WRITING, Phase.TRAINING, Phase.EVALUATING)
        )
        updates = _update_seconds(spec, model)
        one = pruning + writing + training + updates + evaluating
        divided = count_operations(shared, model)[Phase.TRAINING] / fast + _update_seconds(shared, model)
        eight = pruning + writing + divided + evaluating
        seconds = (pruning, writing, training, updates, evaluating, one, eight)
        rows.append((name, *(f"{each / 60:,.1f}" for each in seconds)))
    head = ("model", "pruning", "writing", "training", "updates", "evaluating", "job, one card", "job, eight cards")
    return _table(head, rows)


def _update_seconds(spec: JobSpec, model: Dimensions) -> float:
    """Return the seconds of all optimizer steps of all nonzeros. The bandwidth of the memory limits them."""
    return spec.repair.steps * model.targets * UPDATE_BYTES / (BANDWIDTH * BANDWIDTH_PART)


def check_table() -> str:
    """Return the table that compares the formulas with the measurements in `RESULTS`."""
    measured = {(row.hidden, row.method, row.phase): row for row in read_rows(RESULTS)}
    rows = []
    for hidden, method in dict.fromkeys((row.hidden, row.method) for row in measured.values()):
        for row in by_formula(hidden, method):
            real = measured[row.hidden, row.method, row.phase]
            flops = (f"{row.operations / GB:,.1f}", f"{real.operations / GB:,.1f}")
            sizes = (f"{row.memory / 1e6:,.0f}", f"{real.memory / 1e6:,.0f}")
            more = [f"{each:+.0%}" for each in (row.operations / real.operations - 1, row.memory / real.memory - 1)]
            rows.append((str(hidden), method, str(row.phase), *flops, more[0], *sizes, more[1]))
    head = ("hidden", "trained", "phase", "GFLOP, formula", "counted", "deviation", "MB, formula", "measured")
    return _table((*head, "deviation"), rows)


TABLES = (memory_table, fit_table, cards_table, operations_table, time_table, check_table)


def _gb(size: float) -> str:
    return f"{size / GB:,.1f}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ("--",) * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


if __name__ == "__main__":
    main()
