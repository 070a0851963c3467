"""Whether a job fits a worker, and the suggested change if it does not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from api.schemas.estimates import EstimateSpec
from core import ids
from core.capability import CPU, Capability
from core.estimate import fitting
from core.estimate.calibration import estimate_seconds
from core.estimate.footprint import PROCESS_BYTES, memory_by_phase
from core.estimate.speed import count_work
from core.jobs.overrides import apply_overrides
from core.specs import Dtype, JobSpec
from core.states import Phase
from seft.models.dimensions import Dimensions, read_dimensions
from seft.models.shapes import shapes
from seft.models.source import find
from tests.claims import LARGEST
from tests.hollow import write_hollow

MINIMAL: dict[str, Any] = {"model": "tiny", "dataset": ids.new("file"), "sparsity": 0.6, "dtype": "float32"}
MEBIBYTE = 1 << 20


@pytest.fixture
def model(tmp_path: Path) -> Dimensions:
    write_hollow(tmp_path / "tiny")
    source = find("tiny", roots=[tmp_path])
    return read_dimensions(source, shapes(source))


def gpu(mebibytes: int) -> Capability:
    return Capability("cuda", "a small device", fitting.CONTEXT_BYTES + mebibytes * MEBIBYTE, LARGEST)


def test_a_job_that_keeps_the_zeros_of_its_model_needs_no_memory_for_pruning(model: Dimensions) -> None:
    keeps = {**MINIMAL, "sparsity": 0, "prune": {"reconstruct_epochs": 2}, "repair": {"retain": "none"}}
    phases = memory_by_phase(model, JobSpec.model_validate(keeps))
    assert not {Phase.PRUNING, Phase.RECONSTRUCTING} & phases.keys()


@pytest.mark.parametrize(
    "more",
    [
        {"repair": {"micro_batch": 8, "batch_tokens": 4096}},
        {"repair": {"sequence_tokens": 4096}},
        {"prune": {"calibration": {"samples": 4096, "tokens": 512}}},
        {"evaluate": {"tokens": 16384}},
        {"prune": {"calibration": {"samples": 256}, "reconstruct_epochs": 2}},
        {"repair": {"density": "all", "sequence_tokens": 4096}},
        {"prune": {"schedule": "gradual"}, "repair": {"density": "all", "sequence_tokens": 4096}},
    ],
)
def test_the_suggested_change_makes_the_job_fit_and_is_a_merge_patch(model: Dimensions, more: dict[str, Any]) -> None:
    spec, worker = JobSpec.model_validate({**MINIMAL, **more}), gpu(100)
    assert not fitting.fit(model, spec, worker).fits
    change = fitting.suggest_change(model, spec, worker)
    assert change
    fitting_spec = apply_overrides(spec.model_dump(mode="json"), change)
    assert fitting.fit(model, fitting_spec, worker).fits
    assert fitting.suggest_change(model, fitting_spec, worker) == {}


def test_each_device_has_its_part_of_a_batch_and_a_worker_with_fewer_devices_gets_a_change(model: Dimensions) -> None:
    repair = {"micro_batch": 8, "batch_tokens": 4096}
    one, two = (JobSpec.model_validate({**MINIMAL, "repair": repair, "devices": count}) for count in (1, 2))
    whole, half = (memory_by_phase(model, spec)[Phase.TRAINING] for spec in (one, two))
    assert half.device < whole.device
    assert half.combined > whole.combined, "on a CPU, the weights are in memory twice"
    worker = gpu(1000)
    assert fitting.fit(model, one, worker).fits
    assert not fitting.fit(model, two, worker).fits
    assert fitting.suggest_change(model, two, worker) == {"devices": 1}


def test_a_model_that_does_not_fit_one_device_is_split_over_several(model: Dimensions) -> None:
    repair = {"micro_batch": 4, "batch_tokens": 2048}
    whole, split = (
        JobSpec.model_validate({**MINIMAL, "devices": 4, "sharded": on, "repair": repair}) for on in (False, True)
    )
    needs = [memory_by_phase(model, spec) for spec in (whole, split)]
    assert all(needs[1][phase].device < need.device for phase, need in needs[0].items())
    assert needs[1][Phase.LOADING].host > needs[0][Phase.LOADING].host
    largest = max(need.device for need in needs[1].values())
    worker = replace(
        gpu(1000), devices=4, memory=round((largest + fitting.CONTEXT_BYTES) / fitting.USABLE_FRACTION) + 1
    )
    assert not fitting.fit(model, whole, worker).fits
    assert fitting.fit(model, split, worker).fits
    assert fitting.suggest_change(model, whole, worker) == {"sharded": True}
    without_dataset = EstimateSpec.model_validate({**whole.model_dump(exclude={"dataset"})})
    assert fitting.suggest_change(model, without_dataset, worker) == {"sharded": True}
    alone = replace(worker, devices=1, memory=1 << 40)
    assert fitting.suggest_change(model, split, alone) == {"sharded": False, "devices": 1}


def test_two_devices_train_in_half_the_time_and_their_times_are_measured_apart(model: Dimensions) -> None:
    one, two = (JobSpec.model_validate({**MINIMAL, "dtype": "float32", "devices": count}) for count in (1, 2))
    seconds = [estimate_seconds(spec, model, {Dtype.FLOAT32: 1e9})[Phase.TRAINING] for spec in (one, two)]
    assert seconds[1] == seconds[0] / 2
    tasks = [set(count_work(spec, model.parameters, model.targets)) for spec in (one, two)]
    assert {task.phase for task in tasks[0] ^ tasks[1]} == {Phase.TRAINING}


def test_the_times_of_a_split_model_count_only_for_models_that_are_split_over_as_many_devices() -> None:
    request = {**MINIMAL, "repair": {"micro_batch": 4, "batch_tokens": 2048}}
    whole, split, wider = (
        set(count_work(JobSpec.model_validate({**request, "devices": count, "sharded": sharded}), 10**6, 10**6))
        for count, sharded in ((2, False), (2, True), (4, True))
    )
    same = {Phase.EXPORTING, Phase.UPLOADING}
    assert {Phase(task.phase) for task in whole} > same
    for other in (whole, wider):
        assert {task.phase for task in split & other} == same


def training_bytes(model: Dimensions, **repair: Any) -> int:
    return memory_by_phase(model, JobSpec.model_validate({**MINIMAL, "repair": repair}))[Phase.TRAINING].device


def test_a_step_of_one_micro_batch_stores_no_gradients_of_the_nonzeros(model: Dimensions) -> None:
    several, one = ({"batch_tokens": tokens, "micro_batch": 1} for tokens in (1024, 512))
    assert training_bytes(model, **several) - training_bytes(model, **one) >= round(4 * 0.4 * model.targets)
    assert training_bytes(model, **one) < training_bytes(model, method="masked_full")


def test_experts_on_several_devices_store_gradients_of_the_nonzeros_in_every_step(model: Dimensions) -> None:
    blocks = tuple(tuple(replace(matrix, use=0.25) for matrix in block) for block in model.blocks)
    experts = replace(model, blocks=blocks)
    one, two = (
        JobSpec.model_validate(
            {**MINIMAL, "devices": count, "repair": {"micro_batch": count, "batch_tokens": 512 * count}}
        )
        for count in (1, 2)
    )
    for each, summed in ((experts, round(4 * 0.4 * model.targets)), (model, 0)):
        needs = [memory_by_phase(each, spec)[Phase.TRAINING].device for spec in (one, two)]
        assert needs[1] - needs[0] >= summed
        assert (needs[1] == needs[0]) is (summed == 0)


def test_a_step_of_one_micro_batch_is_suggested_before_shorter_sequences(model: Dimensions) -> None:
    request = {**MINIMAL, "dtype": "bfloat16", "prune": {"schedule": "gradual"}, "evaluate": {"tokens": 128}}
    least = {"micro_batch": 1, "retain": "none", "activation_checkpointing": True}
    several, one = (
        JobSpec.model_validate({**request, "repair": {**least, "batch_tokens": tokens}}) for tokens in (1024, 512)
    )
    most = fitting.fit(model, one, gpu(0)).needed_bytes
    worker = Capability("cuda", "a device", round(most / fitting.USABLE_FRACTION) + 1, LARGEST)
    assert not fitting.fit(model, several, worker).fits
    assert fitting.suggest_change(model, several, worker) == {"repair": {"batch_tokens": 512}}


def test_a_change_that_no_request_may_contain_is_not_suggested(model: Dimensions) -> None:
    least = {"micro_batch": 1, "retain": "none", "activation_checkpointing": True, "steps": 100}
    request = {**MINIMAL, "dtype": "bfloat16", "prune": {"schedule": "gradual"}, "evaluate": {"tokens": 128}}
    small, plain, swaps = (
        JobSpec.model_validate({**request, "repair": {**least, "batch_tokens": tokens, "swap_tokens": swap}})
        for tokens, swap in ((512, 0), (1024, 0), (1024, 5120))
    )
    most = fitting.fit(model, small, gpu(0)).needed_bytes
    worker = Capability("cuda", "a device", round(most / fitting.USABLE_FRACTION) + 1, LARGEST)
    change = fitting.suggest_change(model, plain, worker)
    assert change == {"repair": {"batch_tokens": 512}}
    with pytest.raises(ValidationError, match="must be small enough for a swap after step 70"):
        apply_overrides(swaps.model_dump(mode="json"), change)
    assert fitting.suggest_change(model, swaps, worker) is None


def test_a_gguf_format_is_left_out_if_it_needs_too_much_memory(model: Dimensions) -> None:
    large = replace(model, parameters=10**9)
    both, dense, alone = (
        JobSpec.model_validate({**MINIMAL, "dtype": "bfloat16", "output": {"formats": formats}})
        for formats in (["dense", "gguf_q8_0"], ["dense"], ["gguf_q8_0"])
    )
    needed = memory_by_phase(large, dense)[Phase.EXPORTING].combined
    worker = Capability(CPU, "x86_64", round(needed / fitting.USABLE_FRACTION) + 1, LARGEST)
    assert not fitting.fit(large, both, worker).fits
    assert fitting.suggest_change(large, both, worker) == {"output": {"formats": ["dense"]}}
    assert fitting.suggest_change(large, alone, worker) is None, "the job would have no format"


def test_the_retained_text_is_left_out_if_a_phase_has_no_memory_for_its_predictions(model: Dimensions) -> None:
    large, request = replace(model, parameters=10**9), {**MINIMAL, "dtype": "bfloat16", "evaluate": {"tokens": 128}}
    least = {"micro_batch": 1, "activation_checkpointing": True, "retain_tokens": 1 << 22, "steps": 10**6}
    retains, none = (
        JobSpec.model_validate({**request, "repair": {**least, "retain": name}}) for name in ("written", "none")
    )
    needed = fitting.fit(large, none, Capability(CPU, "x86_64", LARGEST, LARGEST)).needed_bytes
    worker = Capability(CPU, "x86_64", round(needed / fitting.USABLE_FRACTION) + 1, LARGEST)
    assert fitting.fit(large, retains, worker).phase is Phase.EXPORTING
    assert fitting.suggest_change(large, retains, worker) == {"repair": {"retain": "none"}}


def test_a_smaller_data_type_is_suggested_before_everything_else(model: Dimensions) -> None:
    spec = JobSpec.model_validate(MINIMAL)
    needed = fitting.fit(model, spec.model_copy(update={"dtype": Dtype.BFLOAT16}), gpu(0)).needed_bytes
    worker = Capability("cuda", "a device", round(needed / fitting.USABLE_FRACTION) + 1, LARGEST)
    assert not fitting.fit(model, spec, worker).fits
    assert fitting.suggest_change(model, spec, worker) == {"dtype": "bfloat16"}


def test_activations_that_are_computed_again_are_suggested_before_changes_of_the_result(model: Dimensions) -> None:
    repair = {"batch_tokens": 8192, "sequence_tokens": 4096, "retain": "none"}
    spec = JobSpec.model_validate({**MINIMAL, "dtype": "bfloat16", "evaluate": {"tokens": 128}, "repair": repair})
    again = spec.model_copy(update={"repair": spec.repair.model_copy(update={"activation_checkpointing": True})})
    needed = fitting.fit(model, again, gpu(0)).needed_bytes
    worker = Capability("cuda", "a device", round(needed / fitting.USABLE_FRACTION) + 1, LARGEST)
    assert not fitting.fit(model, spec, worker).fits
    assert fitting.suggest_change(model, spec, worker) == {"repair": {"activation_checkpointing": True}}


def test_a_gradual_job_has_no_phase_of_pruning_and_sums_the_gradients_of_all_weights(model: Dimensions) -> None:
    repair = {"batch_tokens": 1024, "micro_batch": 1}
    gradual, one_shot = (
        memory_by_phase(model, JobSpec.model_validate({**MINIMAL, "prune": {"schedule": name}, "repair": repair}))
        for name in ("gradual", "one_shot")
    )
    assert set(one_shot) - set(gradual) == {Phase.PRUNING}
    assert gradual[Phase.TRAINING].device - one_shot[Phase.TRAINING].device >= round(4 * 0.6 * model.targets)


def test_reading_a_dataset_to_retain_needs_less_memory_than_writing_and_its_time_is_measured_apart(
    model: Dimensions,
) -> None:
    dataset = {"retain": "dataset", "retain_dataset": ids.new("file")}
    read, written = (JobSpec.model_validate({**MINIMAL, "repair": repair}) for repair in (dataset, {}))
    needs = [memory_by_phase(model, spec) for spec in (read, written)]
    assert needs[0][Phase.WRITING].device < needs[1][Phase.WRITING].device
    assert needs[0][Phase.TRAINING] == needs[1][Phase.TRAINING]
    works = [{task for task in count_work(spec, 1, 1) if task.phase == Phase.WRITING} for spec in (read, written)]
    assert not works[0] & works[1]


def test_no_change_is_suggested_if_the_weights_alone_do_not_fit(model: Dimensions) -> None:
    assert fitting.suggest_change(model, JobSpec.model_validate(MINIMAL), gpu(0)) is None


def test_a_cpu_counts_the_process_and_another_device_only_its_tensors(model: Dimensions) -> None:
    spec = JobSpec.model_validate(MINIMAL)
    footprints = memory_by_phase(model, spec)
    highest = max(footprints, key=lambda phase: footprints[phase].combined)
    peak = footprints[highest].combined
    assert peak > PROCESS_BYTES
    on_cpu = fitting.fit(model, spec, Capability(CPU, "x86_64", peak, LARGEST))
    assert (on_cpu.phase, on_cpu.needed_bytes, on_cpu.fits) == (highest, peak, False)
    assert fitting.fit(model, spec, Capability(CPU, "x86_64", 2 * peak, LARGEST)).fits
    tensors = max(each.device for each in footprints.values())
    assert fitting.fit(model, spec, gpu(100)).needed_bytes == tensors + fitting.CONTEXT_BYTES


def test_seft_as_published_needs_the_dense_sum_of_gradients(model: Dimensions) -> None:
    ours, published = (
        memory_by_phase(model, JobSpec.model_validate({**MINIMAL, "repair": {"variant": variant, "density": 0.005}}))[
            Phase.TRAINING
        ]
        for variant in ("improved", "published")
    )
    assert published.device - ours.device == 4 * model.targets
