"""Whether a job fits a machine, and the change with which it would."""

from pathlib import Path
from typing import Any

import pytest

from core import ids
from core.capability import CPU, LARGEST, Capability
from core.estimate import fitting
from core.estimate.dimensions import Dimensions, read_dimensions
from core.estimate.footprint import memory_by_phase
from core.jobs.overrides import apply_overrides
from core.specs import JobSpec
from core.states import Phase
from seft.models.shapes import shapes
from seft.models.source import find
from tests.hollow import write_hollow

LEAST: dict[str, Any] = {"model": "tiny", "dataset": ids.new("file"), "sparsity": 0.6}
MEBIBYTE = 1 << 20


@pytest.fixture
def model(tmp_path: Path) -> Dimensions:
    write_hollow(tmp_path / "tiny")
    source = find("tiny", roots=[tmp_path])
    return read_dimensions(source, shapes(source))


def gpu(mebibytes: int) -> Capability:
    return Capability("cuda", "a small device", fitting.CONTEXT_BYTES + mebibytes * MEBIBYTE, LARGEST)


@pytest.mark.parametrize(
    "more",
    [
        {"repair": {"micro_batch": 8, "batch_tokens": 4096}},
        {"repair": {"sequence_tokens": 4096}},
        {"prune": {"calibration": {"samples": 4096, "tokens": 512}}},
        {"evaluate": {"tokens": 16384}},
        {"prune": {"calibration": {"samples": 256}, "reconstruct_epochs": 2}},
    ],
)
def test_the_change_makes_the_job_fit_and_is_a_patch_of_it(model: Dimensions, more: dict[str, Any]) -> None:
    spec, has = JobSpec.model_validate({**LEAST, **more}), gpu(100)
    assert not fitting.fit(model, spec, has).met
    change = fitting.suggest_change(model, spec, has)
    assert change
    fitting_spec = apply_overrides(spec.model_dump(mode="json"), change)
    assert fitting.fit(model, fitting_spec, has).met
    assert fitting.suggest_change(model, fitting_spec, has) == {}


def test_where_the_weights_alone_are_too_much_no_change_helps(model: Dimensions) -> None:
    assert fitting.suggest_change(model, JobSpec.model_validate(LEAST), gpu(0)) is None


def test_a_processor_holds_all_processes_and_another_device_its_tensors(model: Dimensions) -> None:
    spec = JobSpec.model_validate(LEAST)
    held = memory_by_phase(model, spec)
    fullest = max(each.together for each in held.values())
    alone = fitting.fit(model, spec, Capability(CPU, "x86_64", fullest, LARGEST))
    assert (alone.phase, alone.needed_bytes, alone.met) == (Phase.EXPORTING, fullest, False)
    assert fitting.fit(model, spec, Capability(CPU, "x86_64", 2 * fullest, LARGEST)).met
    tensors = max(each.device for each in held.values())
    assert fitting.fit(model, spec, gpu(100)).needed_bytes == tensors + fitting.CONTEXT_BYTES
