"""The memory of each phase of a job counts everything that is in memory at its peak."""

from dataclasses import replace
from typing import Any

import pytest

from core.capability import Capability
from core.estimate import fitting
from core.estimate.activations import forward_bytes
from core.estimate.footprint import memory_by_phase, retained_bytes
from core.estimate.pruning_memory import pruning_bytes
from core.estimate.training_memory import training_parts
from core.specs import JobSpec
from core.states import Phase
from seft.models.dimensions import Dimensions, Matrix
from tests.claims import LARGEST
from tests.core.estimate.test_fitting import MINIMAL

MODEL = Dimensions("Large", 2048, 10**9, 10**8, 1000, 128000, 1000, 1000, blocks=((Matrix(1000, 1000),) * 8,) * 100)
SMALL_STEPS = {"activation_checkpointing": True, "retain": "none"}


def spec_of(**more: Any) -> JobSpec:
    return JobSpec.model_validate({**MINIMAL, **more})


def shorter_if_too_large(spec: JobSpec) -> Any:
    """Return the suggested change for a GPU that is a little too small for the training of the job."""
    need = memory_by_phase(MODEL, spec)[Phase.TRAINING].device + fitting.CONTEXT_BYTES
    return fitting.suggest_change(MODEL, spec, Capability("cuda", "a device", round(1.08 * need), LARGEST))


@pytest.mark.parametrize("phase", [Phase.EVALUATING, Phase.WRITING, Phase.PRUNING, Phase.TRAINING, Phase.EXPORTING])
def test_the_predictions_for_the_retained_text_are_on_the_host_from_the_writing_on(phase: Phase) -> None:
    few, many = (spec_of(repair={"retain_tokens": tokens}) for tokens in (1 << 14, 1 << 18))
    more = retained_bytes(many) - retained_bytes(few)
    assert more > 0
    before, after = (memory_by_phase(MODEL, spec) for spec in (few, many))
    assert after[phase].host - before[phase].host == more
    assert after[phase].combined - before[phase].combined == more
    assert after[Phase.LOADING] == before[Phase.LOADING]


def test_an_evaluation_during_the_training_needs_its_activations_beside_the_state() -> None:
    repair = {**SMALL_STEPS, "method": "masked_full"}
    long = {"tokens": 65536}
    never, often = (
        spec_of(dtype="bfloat16", repair={**repair, "evaluate_interval": n}, evaluate=long) for n in (0, 10)
    )
    parts = training_parts(MODEL, often)
    forward = forward_bytes(MODEL, 65536, often)
    assert forward > parts.saved + parts.work
    assert memory_by_phase(MODEL, often)[Phase.TRAINING].device == parts.weights + parts.state + forward
    assert memory_by_phase(MODEL, never)[Phase.TRAINING].device < parts.weights + parts.state + forward
    assert shorter_if_too_large(often)["evaluate"]["tokens"] < 65536


@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 2), ("float32", 4)])
def test_compared_block_outputs_are_copied_and_their_differences_are_saved(dtype: str, size: int) -> None:
    """The outputs of both models are copied in the data type of the job, and their differences are float32."""
    spec = spec_of(dtype=dtype, repair={**SMALL_STEPS, "density": 0.005, "hidden_weight": 0.5})
    tokens = spec.repair.micro_batch * spec.repair.sequence_tokens
    assert training_parts(MODEL, spec).work >= (2 * size + 4) * tokens * MODEL.hidden * len(MODEL.blocks)


@pytest.mark.parametrize("method", ["wanda", "admm"])
def test_a_second_pruning_needs_its_memory_at_the_end_of_the_training(method: str) -> None:
    repair = {**SMALL_STEPS, "method": "lora_reprune"}
    prune = {"method": method, "calibration": {"samples": 1024}}
    spec = spec_of(dtype="bfloat16", prune=prune, repair=repair)
    phases, parts = memory_by_phase(MODEL, spec), training_parts(MODEL, spec)
    assert phases[Phase.TRAINING].device == parts.weights + parts.state + pruning_bytes(MODEL, spec)
    assert phases[Phase.TRAINING].device > phases[Phase.PRUNING].device
    assert shorter_if_too_large(spec) == {"prune": {"calibration": {"samples": 512}}}
    once = memory_by_phase(MODEL, spec_of(dtype="bfloat16", repair={**repair, "method": "masked_lora"}))[Phase.TRAINING]
    assert phases[Phase.TRAINING].host - once.host == MODEL.targets // 8, "one bit per weight, for its former zero"


def test_a_model_that_changes_its_logits_computes_all_of_them() -> None:
    capped, tokens = replace(MODEL, changes_logits=True), 16384
    long = {**SMALL_STEPS, "sequence_tokens": tokens, "micro_batch": 1, "batch_tokens": tokens}
    for dtype, size in (("bfloat16", 2), ("float32", 4)):
        whole = size * MODEL.vocabulary * tokens
        spec = spec_of(dtype=dtype, evaluate={"tokens": tokens}, prune={"calibration": {"tokens": tokens}}, repair=long)
        needs = memory_by_phase(capped, spec)
        assert forward_bytes(capped, tokens, spec) >= 2 * whole
        for phase, copies in {Phase.EVALUATING: 2, Phase.PRUNING: 4, Phase.TRAINING: 4}.items():
            assert needs[phase].device >= size * MODEL.parameters + copies * whole, phase
        distilled = spec_of(dtype=dtype, repair={**long, "distill_weight": 0.5})
        assert training_parts(capped, distilled).work >= 5 * whole


def test_one_of_two_processes_copies_the_nonzeros() -> None:
    repair = {"density": "all", "sequence_tokens": 128, "evaluate_interval": 4, **SMALL_STEPS}
    alone, both = (
        memory_by_phase(
            MODEL, spec_of(devices=count, repair={**repair, "micro_batch": count, "batch_tokens": 128 * count})
        )[Phase.TRAINING]
        for count in (1, 2)
    )
    assert both.host_transfer * 2 == alone.host_transfer
    assert both.cpu_only < 0.6 * alone.cpu_only


def test_experts_on_several_devices_get_a_smaller_micro_batch_and_not_a_smaller_batch() -> None:
    experts = replace(MODEL, blocks=((Matrix(1000, 1000, count=8, use=0.25),),) * 100)
    repair = {"density": "all", "batch_tokens": 1 << 14, "sequence_tokens": 512, **SMALL_STEPS}
    large, small = (
        spec_of(devices=2, sharded=True, dtype="bfloat16", repair={**repair, "micro_batch": count}) for count in (32, 2)
    )
    needed = [fitting.fit(experts, spec, Capability("cuda", "", 0, LARGEST)).needed_bytes for spec in (large, small)]
    worker = Capability("cuda", "two devices", sum(needed) // 2, LARGEST, devices=2)
    change = fitting.suggest_change(experts, large, worker)
    assert change
    assert change["repair"].keys() == {"micro_batch"}
