"""Time estimates from the durations of earlier jobs, or from the speed of the device."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, text, update

from core import workers
from core.capability import Capability
from core.estimate import calibration, timings
from core.estimate.footprint import memory_by_phase
from core.estimate.speed import Source, Speed, Task, count_work
from core.jobs import attempts
from core.specs import Dtype, JobSpec
from core.stages import Stage, stages_of
from core.states import Phase
from core.tables import Job, JobEvent
from seft.models.dimensions import Dimensions, Matrix
from tests import claims
from tests.claims import UNLIMITED
from tests.core.conftest import FLOPS, GPU, MakeJob, Sessions

MEASURED = {"model": {"weights": 1000}, "linears": {"weights": 800}, "grown_zeros": 0}
MODEL = Dimensions("Tiny", 2048, 1000, 200, 10, 20, 10, 10, blocks=((Matrix(20, 20), Matrix(20, 20)),))
"""A model with 1000 weights, 800 of them in layers that are pruned."""
LARGE = Dimensions("Large", 2048, 10**9, 10**8, 1000, 20000, 1000, 1000, blocks=((Matrix(1000, 1000),) * 8,) * 100)
PHASES = [
    Phase.EVALUATING,
    Phase.WRITING,
    Phase.PRUNING,
    Phase.EVALUATING,
    Phase.TRAINING,
    Phase.EXPORTING,
    Phase.UPLOADING,
]


def run(sessions: Sessions, has: Capability, part: float = 1.0) -> None:
    """Run a job that takes ten seconds in each phase, and trains a part of its steps."""
    with sessions.begin() as session:
        attempt = claims.claim(session, "w1", 60, capability=has)
        assert attempt is not None
    for phase in PHASES:
        with sessions.begin() as session:
            attempts.set_progress(session, attempt, phase=phase, progress=0.5, step=0)
    with sessions.begin() as session:
        step = round(part * attempt.spec.repair.steps)
        attempts.publish(session, attempt, step=step, prefix="", sha256="", files=[], scores={}, measured=MEASURED)
        session.execute(
            text(
                "UPDATE job_events SET created_at = '2026-01-01'::timestamptz + place * interval '10 s' FROM"
                " (SELECT id, row_number() OVER (ORDER BY id) AS place FROM job_events WHERE job_id = :job) AS ours"
                " WHERE ours.id = job_events.id"
            ),
            {"job": attempt.job_id},
        )


def changed(spec: JobSpec, part: str, **values: Any) -> JobSpec:
    fields = spec.model_dump(mode="json")
    return JobSpec.model_validate({**fields, part: {**fields[part], **values}})


def total(speed: Speed, spec: JobSpec, model: Dimensions) -> tuple[int, Source | None]:
    """Return the rounded seconds of a job, and what they are based on."""
    seconds, source = speed.estimate_total(spec, model)
    assert seconds is not None
    return round(seconds), source


def test_the_estimate_scales_the_time_of_earlier_jobs_on_the_same_kind_of_device(
    sessions: Sessions, spec: JobSpec, make_job: MakeJob
) -> None:
    make_job()
    run(sessions, GPU)
    with sessions.begin() as session:
        speeds = timings.load(session)
    assert set(speeds) == {GPU.device_name}
    speed = speeds[GPU.device_name]
    assert total(speed, spec, MODEL) == (80, Source.EARLIER_JOBS)
    longer = changed(spec, "repair", steps=3 * spec.repair.steps)
    assert total(speed, longer, MODEL)[0] == 80 + 20
    double = replace(MODEL, parameters=2000, blocks=2 * MODEL.blocks)
    assert total(speed, spec, double)[0] == 160
    other = changed(spec, "repair", method="spp", density="auto")
    assert speed.estimate_total(other, MODEL) == (None, None)
    seconds, source = speed.estimate(other, MODEL)
    assert (Phase.TRAINING in seconds, len(seconds), source) == (False, 6, Source.EARLIER_JOBS)


@pytest.mark.parametrize("begun", [1, 5, len(PHASES)], ids=["evaluating", "training", "uploading"])
def test_a_phase_in_which_the_clock_of_the_database_was_set_back_is_not_measured(
    sessions: Sessions, make_job: MakeJob, begun: int
) -> None:
    make_job()
    run(sessions, GPU)
    with sessions.begin() as session:
        paces = timings.load(session)[GPU.device_name].paces
        claim = session.scalars(select(JobEvent.id).where(JobEvent.type == "job.claimed")).one()
        later = update(JobEvent).where(JobEvent.id > claim + begun)
        session.execute(later.values(created_at=JobEvent.created_at - timedelta(seconds=13)))
    with sessions.begin() as session:
        found = timings.load(session)[GPU.device_name].paces
    assert set(found) == {pace for pace in paces if pace.task.phase != PHASES[begun - 1]} != set(paces)


def test_a_job_that_patience_ended_counts_for_the_steps_that_it_trained(
    sessions: Sessions, spec: JobSpec, make_job: MakeJob
) -> None:
    make_job()
    run(sessions, GPU, part=0.25)
    with sessions.begin() as session:
        speed = timings.load(session)[GPU.device_name]
    assert total(speed, spec, MODEL) == (70 + 4 * 10, Source.EARLIER_JOBS)


def test_evaluations_during_the_training_take_time(spec: JobSpec) -> None:
    often = changed(spec, "repair", evaluate_interval=4)
    tokens = spec.evaluate.windows * spec.evaluate.tokens + spec.retained_tokens // 8
    more = 1 + tokens / 3 / 4 / spec.repair.batch_tokens
    before, after = (calibration.count_operations(each, LARGE)[Phase.TRAINING] for each in (spec, often))
    assert after / before == pytest.approx(more, rel=0.1), "attention depends on the length of a window too"
    before, after = (
        sum(work for task, work in count_work(each, 1000, 800).items() if task.phase is Phase.TRAINING)
        for each in (spec, often)
    )
    assert after / before == pytest.approx(more)
    assert calibration.evaluations_in_training(changed(spec, "repair", evaluate_interval=10**6)) == 1


def test_jobs_of_a_much_smaller_model_tell_nothing(sessions: Sessions, spec: JobSpec, make_job: MakeJob) -> None:
    make_job()
    run(sessions, GPU)
    with sessions.begin() as session:
        speed = timings.load(session)[GPU.device_name]
    assert speed.estimate_total(spec, replace(MODEL, parameters=4000))[0] is not None
    assert speed.estimate_total(spec, replace(MODEL, parameters=4001)) == (None, None)
    seconds, _ = speed.estimate(spec, replace(MODEL, parameters=4001))
    assert set(seconds) == set(calibration.FIXED_SECONDS), "these need no knowledge of the device"


def test_a_calibration_fills_in_what_no_earlier_job_tells(sessions: Sessions, spec: JobSpec, make_job: MakeJob) -> None:
    make_job()
    run(sessions, GPU)
    with sessions.begin() as session:
        workers.record_heartbeat(session, "w1", GPU)
        workers.record_heartbeat(session, "w2", replace(GPU, device_name="unmeasured"))
        workers.record_flops(session, "w1", FLOPS)
        assert workers.find_flops(session) == {GPU.device_name: FLOPS}
        speeds = timings.load(session)
    assert set(speeds) == {GPU.device_name}
    speed = speeds[GPU.device_name]
    assert total(speed, spec, MODEL) == (80, Source.EARLIER_JOBS)
    other = changed(spec, "repair", method="spp", density="auto")
    training = calibration.estimate_seconds(other, MODEL, FLOPS)[Phase.TRAINING]
    seconds, source = speed.estimate_total(other, MODEL)
    assert seconds == pytest.approx(70 + training)
    assert source is Source.CALIBRATION
    assert Speed().estimate_total(spec, MODEL) == (None, None)


CHANGES: dict[str, tuple[str, dict[str, Any], Phase]] = {
    "steps": ("repair", {"steps": 999_999}, Phase.TRAINING),
    "distilled": ("repair", {"distill_weight": 0.5}, Phase.TRAINING),
    "calibration": ("prune", {"calibration": {"samples": 1000}}, Phase.PRUNING),
    "epochs": ("prune", {"reconstruct_epochs": 9}, Phase.RECONSTRUCTING),
    "windows": ("evaluate", {"windows": 1000}, Phase.EVALUATING),
    "retained": ("repair", {"retain_tokens": 1 << 21}, Phase.WRITING),
}


@pytest.mark.parametrize(("part", "values", "phase"), CHANGES.values(), ids=CHANGES)
def test_by_calibration_a_phase_with_more_work_takes_longer(
    spec: JobSpec, part: str, values: dict[str, Any], phase: Phase
) -> None:
    usual = calibration.estimate_seconds(changed(spec, "prune", reconstruct_epochs=1), LARGE, FLOPS)
    more = calibration.estimate_seconds(
        changed(changed(spec, "prune", reconstruct_epochs=1), part, **values), LARGE, FLOPS
    )
    assert more[phase] > 1.1 * usual[phase]


def test_by_calibration_a_device_of_half_the_speed_needs_twice_the_time_to_compute(spec: JobSpec) -> None:
    half = {dtype: flops / 2 for dtype, flops in FLOPS.items()}
    fast, slow = (calibration.estimate_seconds(spec, LARGE, flops) for flops in (FLOPS, half))
    assert set(fast) == {Phase(task.phase) for task in count_work(spec, 1, 1)}
    for phase, seconds in fast.items():
        computes = phase not in calibration.FIXED_SECONDS
        assert slow[phase] == pytest.approx(2 * seconds if computes else seconds), phase


@pytest.mark.parametrize("ratio", [0.5, 1, 2, 4.2, 16])
def test_by_calibration_a_job_gains_less_from_bfloat16_than_its_products(spec: JobSpec, ratio: float) -> None:
    flops = {Dtype.FLOAT32: 1e9, Dtype.BFLOAT16: ratio * 1e9}
    wide, narrow = (
        calibration.estimate_seconds(spec.model_copy(update={"dtype": dtype}), LARGE, flops)[Phase.TRAINING]
        for dtype in flops
    )
    gain = wide / narrow
    assert min(ratio, 1) <= gain <= max(ratio, 1)
    assert (gain == 1) is (ratio == 1)
    if ratio == 4.2:
        assert gain == pytest.approx(2.2, rel=0.01), "as measured, see docs/log.md"


@pytest.mark.parametrize("length", [1024, 4096, 8192])
def test_text_in_longer_windows_takes_longer_to_write(spec: JobSpec, length: int) -> None:
    """Fewer of them are written at the same time. A time of earlier jobs follows it as a calibration does."""
    batch = {"batch_tokens": 8192, "micro_batch": 1}
    usual, longer = (changed(spec, "repair", sequence_tokens=tokens, **batch) for tokens in (512, length))
    (task,) = (task for task in count_work(usual, 1, 1) if task.phase is Phase.WRITING)
    works = [count_work(each, 1, 1)[task] / each.retained_tokens for each in (usual, longer)]
    passes = [calibration.WRITTEN + calibration.WRITTEN_ALONE / (8192 // tokens) for tokens in (512, length)]
    assert works[1] / works[0] == pytest.approx(passes[1] / passes[0]), "docs/log.md has the measurement"


def test_by_calibration_dsnot_and_a_second_pruning_take_time(spec: JobSpec) -> None:
    wanda = changed(spec, "prune", method="wanda")
    plain, refined = (
        calibration.count_operations(each, LARGE)[Phase.PRUNING]
        for each in (wanda, changed(wanda, "prune", refine="dsnot"))
    )
    assert refined > 1.1 * plain
    once, again = (
        calibration.count_operations(changed(wanda, "repair", method=method, density="auto"), LARGE)[Phase.TRAINING]
        for method in ("masked_lora", "lora_reprune")
    )
    assert again - once == pytest.approx(plain)


def test_by_calibration_pruning_without_text_or_products_takes_no_time(spec: JobSpec) -> None:
    magnitude, wanda, admm, alps = (
        calibration.estimate_seconds(changed(spec, "prune", method=method), LARGE, FLOPS)[Phase.PRUNING]
        for method in ("magnitude", "wanda", "admm", "alps")
    )
    assert 0 == magnitude < wanda < admm < alps


def test_a_job_that_keeps_the_zeros_of_its_model_has_no_work_of_pruning(spec: JobSpec) -> None:
    keeps = JobSpec.model_validate(
        {**spec.model_dump(), "sparsity": 0, "prune": {"reconstruct_epochs": 2}, "repair": {"retain": "none"}}
    )
    phases = {Phase(task.phase) for task in count_work(keeps, 1000, 800)}
    assert not phases & {Phase.PRUNING, Phase.RECONSTRUCTING}
    assert set(calibration.estimate_seconds(keeps, LARGE, FLOPS)) == phases
    assert not {Stage.PRUNING, Stage.RECONSTRUCTING} & set(stages_of(keeps))


def test_times_of_pruning_count_for_jobs_with_as_much_calibration_text(spec: JobSpec) -> None:
    fewer = changed(spec, "prune", calibration={"samples": 8, "tokens": 512})
    assert {task for task in count_work(spec, 1, 1) if task not in count_work(fewer, 1, 1)} == {
        Task(Phase.PRUNING, f"admm none curvature {128 * 2048}")
    }


def test_a_gradual_job_has_no_work_of_pruning_and_two_evaluations(spec: JobSpec) -> None:
    gradual = JobSpec.model_validate(
        {**spec.model_dump(), "prune": {"schedule": "gradual"}, "repair": {"density": "all"}}
    )
    before, after = (count_work(each, 1000, 800) for each in (spec, gradual))
    assert {task.phase for task in before} - {task.phase for task in after} == {Phase.PRUNING}
    evaluating = Task(Phase.EVALUATING)
    assert after[evaluating] == pytest.approx(before[evaluating] * 2 / 3)
    assert not {task for task in before if task.phase is Phase.TRAINING} & set(after), "methods differ in speed"


def test_a_job_counts_for_jobs_of_the_data_type_that_it_ran_in(
    sessions: Sessions, spec: JobSpec, make_job: MakeJob
) -> None:
    single, half = (spec.model_copy(update={"dtype": dtype}) for dtype in (Dtype.FLOAT32, Dtype.BFLOAT16))
    for has, known, unknown in ((GPU, half, single), (replace(GPU, device_name="old", bfloat16=False), single, half)):
        make_job(dtype=Dtype.AUTO)
        run(sessions, has)
        with sessions.begin() as session:
            speed = timings.load(session)[has.device_name]
        assert total(speed, known, MODEL) == (80, Source.EARLIER_JOBS)
        assert speed.estimate_total(unknown, MODEL) == (None, None)


def test_by_calibration_each_data_type_has_its_own_speed(spec: JobSpec) -> None:
    single, half = (spec.model_copy(update={"dtype": dtype}) for dtype in (Dtype.FLOAT32, Dtype.BFLOAT16))
    slow, fast = (Speed(flops=FLOPS).estimate(each, LARGE)[0][Phase.TRAINING] for each in (single, half))
    # The log has 10.2 s and 4.6 s for a step with products of 106 and 446 GFLOP/s.
    assert slow / fast == pytest.approx(10.2 / 4.6 * (106 / 446) * 4, rel=0.01)
    assert Speed(flops={}).estimate_total(half, LARGE) == (None, None)


def test_the_data_type_auto_has_no_work_and_no_memory_of_its_own(spec: JobSpec) -> None:
    auto = spec.model_copy(update={"dtype": Dtype.AUTO})
    for compute in (lambda: count_work(auto, 1, 1), lambda: memory_by_phase(MODEL, auto)):
        with pytest.raises(ValueError, match="must be float32 or bfloat16; it is auto"):
            compute()


@pytest.mark.parametrize(
    "weights", [0, -1, "many", None, 10**400, {}], ids=["zero", "negative", "text", "null", "huge", "object"]
)
def test_counts_that_cannot_be_true_are_not_used(sessions: Sessions, make_job: MakeJob, weights: object) -> None:
    job_id = make_job()
    run(sessions, GPU)
    with sessions.begin() as session:
        session.get_one(Job, job_id).measured = {"model": {"weights": weights}, "linears": {"weights": 1}}
    with sessions.begin() as session:
        assert timings.load(session) == {}
        session.execute(text("UPDATE jobs SET measured = NULL"))
        assert timings.load(session) == {}


def test_jobs_on_unknown_machines_and_stopped_jobs_are_not_measured(sessions: Sessions, make_job: MakeJob) -> None:
    make_job()
    run(sessions, UNLIMITED)
    make_job()
    with sessions.begin() as session:
        session.execute(text("UPDATE jobs SET stopping = true WHERE status = 'queued'"))
    run(sessions, GPU)
    with sessions.begin() as session:
        assert timings.load(session) == {}
