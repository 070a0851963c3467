"""Progress and remaining time of a job that a clock of the test measures."""

from pathlib import Path
from typing import Any

import pytest

from core import ids
from core.estimate.calibration import count_operations
from core.estimate.speed import Pace, Speed, count_work
from core.specs import Dtype, JobSpec
from core.stages import Stage, stages_of
from core.states import Phase
from seft.models.dimensions import read_dimensions
from seft.models.shapes import shapes
from seft.models.source import ModelSource, find
from tests.hollow import write_hollow
from worker.progress import OTHERS, TYPICAL, ProgressEstimator, Shares

ONE_STAGE = 10.0
"""Seconds that a stage is expected to take in these tests."""


def make_spec(**changes: Any) -> JobSpec:
    fields = {"model": "tiny", "dataset": ids.new("file"), "sparsity": 0.6, "repair": {"steps": 100}}
    return JobSpec.model_validate({**fields, "dtype": "float32", **changes})


SPECS = {
    "default": make_spec(),
    "prune only": make_spec(repair={"method": "none"}),
    "gradual": make_spec(prune={"schedule": "gradual"}),
    "reconstructed": make_spec(prune={"reconstruct_epochs": 2}, repair={"steps": 100, "retain": "none"}),
}


class Run:
    """A job of a hollow model. Its stages take as long as a test says."""

    def __init__(self, spec: JobSpec, folder: Path, *, known: bool = True) -> None:
        self.now = 0.0
        self.estimator = ProgressEstimator(spec, lambda: self.now)
        self.stages = stages_of(spec)
        write_hollow(folder / "tiny")
        source = find("tiny", roots=[folder])
        self.estimator.expect(even_speed(spec, self.stages, source) if known else Speed(), source)

    def left(self, stage: Stage, fraction: float, after: float = 0.0) -> float | None:
        """Let `after` seconds pass, then report."""
        self.now += after
        return self.estimator.report(stage, fraction)[1]


def even_speed(spec: JobSpec, stages: tuple[Stage, ...], source: ModelSource) -> Speed:
    """Return the speed of a device on which every stage of the job takes `ONE_STAGE` seconds."""
    model = read_dimensions(source, shapes(source))
    phases = [stage.phase for stage in stages]
    work = count_work(spec, model.parameters, model.targets)
    seconds = {task: ONE_STAGE * phases.count(Phase(task.phase)) for task in work}
    return Speed(paces=tuple(Pace(task, model.parameters, seconds[task] / work[task]) for task in work))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_progress_never_decreases_and_ends_at_one(spec: JobSpec) -> None:
    shares = Shares(spec)
    values = [shares.progress(stage, fraction) for stage in stages_of(spec) for fraction in (0.0, 0.5, 1.0)]
    assert values == sorted(values)
    assert values[0] == 0
    assert values[-1] == pytest.approx(1)


def test_progress_is_the_part_of_the_time_that_has_passed() -> None:
    """If the stages take as long as calculated, the progress of a job is the fraction of its time."""
    spec = make_spec(repair={"steps": 8192})
    operations = count_operations(spec, TYPICAL)
    whole = sum(operations.values()) * (1 + sum(OTHERS.values()))
    begin = sum(operations[phase] for phase in (Phase.WRITING, Phase.PRUNING)) + operations[Phase.EVALUATING] * 2 / 3
    begin += OTHERS[Stage.LOADING] * sum(operations.values())
    for fraction in (0.0, 0.06, 1.0):
        passed = (begin + fraction * operations[Phase.TRAINING]) / whole
        assert Shares(spec).progress(Stage.TRAINING, fraction) == pytest.approx(passed)
    assert Shares(spec).progress(Stage.TRAINING, 0.06) < 0.2


def test_the_typical_dimensions_are_those_of_a_model() -> None:
    embeddings, norms = 2 * TYPICAL.vocabulary * TYPICAL.hidden, (2 * len(TYPICAL.blocks) + 1) * TYPICAL.hidden
    assert TYPICAL.targets + embeddings + norms == TYPICAL.parameters


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("step", [0, 40])
def test_a_resumed_job_has_at_least_the_progress_of_its_state(spec: JobSpec, step: int) -> None:
    estimator, shares = ProgressEstimator(spec), Shares(spec)
    estimator.least = shares.reached(step)
    trains = Stage.TRAINING in stages_of(spec)
    state = shares.progress(Stage.TRAINING, step / 100) if trains else shares.progress(Stage.EXPORTING, 0.0)
    assert [estimator.report(Stage.LOADING, fraction)[0] for fraction in (0.0, 1.0)] == [state, state]
    assert estimator.report(Stage.EXPORTING, 0.5)[0] == shares.progress(Stage.EXPORTING, 0.5)
    estimator.least = shares.reached(0)
    assert estimator.report(Stage.LOADING, 0.0)[0] <= state, "a state that cannot be read counts no longer"


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_job_that_runs_as_expected_has_a_constant_finish(spec: JobSpec, tmp_path: Path) -> None:
    run = Run(spec, tmp_path)
    whole = ONE_STAGE * len(run.stages)
    for stage in run.stages:
        assert run.left(stage, 0.0) == pytest.approx(whole - run.now)
        for fraction in (0.25, 0.5, 1.0):
            start = ONE_STAGE * run.stages.index(stage)
            assert run.left(stage, fraction, start + fraction * ONE_STAGE - run.now) == pytest.approx(whole - run.now)


def test_the_current_stage_goes_on_at_its_recent_speed(tmp_path: Path) -> None:
    run = Run(SPECS["default"], tmp_path)
    later = 3 * ONE_STAGE  # the last evaluation, export and upload
    run.left(Stage.TRAINING, 0.0)
    for step in range(1, 41):
        left = run.left(Stage.TRAINING, step / 100, 5.0)
    assert left == pytest.approx(60 * 5.0 + later)
    for step in range(41, 91):
        left = run.left(Stage.TRAINING, step / 100, 1.0)
    assert left == pytest.approx(10 * 1.0 + later), "the slow steps are long ago"
    assert run.left(Stage.TRAINING, 0.9, 4.0) == pytest.approx(6.0 + later), "the time since the last step has passed"
    assert run.left(Stage.TRAINING, 0.9, 1000.0) == pytest.approx(later), "a stage never ends in the past"


def test_what_a_stage_needs_before_its_first_progress_is_no_part_of_its_speed(tmp_path: Path) -> None:
    run = Run(SPECS["default"], tmp_path)
    run.left(Stage.TRAINING, 0.0)
    run.left(Stage.TRAINING, 0.0, 500.0)
    assert run.left(Stage.TRAINING, 0.01, 2.0) == pytest.approx(99 * 2.0 + 3 * ONE_STAGE)


def test_a_job_that_is_stopped_trains_only_up_to_that_step(tmp_path: Path) -> None:
    run = Run(SPECS["default"], tmp_path)
    run.left(Stage.TRAINING, 0.0)
    assert run.left(Stage.TRAINING, 0.1, 10.0) == pytest.approx(90 + 30)
    run.estimator.last_step = 12
    assert run.left(Stage.TRAINING, 0.11, 1.0) == pytest.approx(1 + 30)
    run.estimator.last_step = 5
    assert run.left(Stage.TRAINING, 0.12, 1.0) == pytest.approx(30)
    before = Run(SPECS["default"], tmp_path / "second")
    before.estimator.last_step = 0
    assert before.left(Stage.PRUNED, 1.0) == pytest.approx(30), "all later stages but the training"


def test_the_last_evaluation_takes_as_long_as_the_first(tmp_path: Path) -> None:
    run = Run(SPECS["default"], tmp_path)
    run.left(Stage.DENSE, 0.0)
    run.left(Stage.DENSE, 1.0, 77.0)
    run.left(Stage.TRAINING, 0.0)
    assert run.left(Stage.TRAINING, 0.5, 50.0) == pytest.approx(50 + 77 + 20)


def test_a_time_that_cannot_be_stored_is_unknown(tmp_path: Path) -> None:
    run = Run(SPECS["default"], tmp_path)
    run.left(Stage.TRAINING, 0.0)
    assert run.left(Stage.TRAINING, 0.01, 1e6) == pytest.approx(99e6, rel=1e-3)
    assert run.left(Stage.TRAINING, 0.02, 1e8) is None


def test_on_an_unknown_device_the_speed_of_the_job_itself_counts(tmp_path: Path) -> None:
    run = Run(SPECS["default"], tmp_path, known=False)
    for fraction in (0.0, 0.5, 1.0):
        assert run.left(Stage.LOADING, fraction, 3.0) is None
    assert run.left(Stage.WRITING, 0.0) is None
    early = run.left(Stage.WRITING, 0.25, 10.0)
    assert early is not None
    assert early > 30, "the rest of this stage, and the later ones"
    run.left(Stage.WRITING, 1.0, 30.0)
    run.left(Stage.DENSE, 0.0)
    late = run.left(Stage.DENSE, 1.0, 1000.0)
    assert late is not None
    assert late > 10 * early, "the device was slower than it seemed"
    resumed = Run(SPECS["default"], tmp_path / "resumed", known=False)
    assert resumed.left(Stage.TRAINING, 0.5) is None
    after_one_step = resumed.left(Stage.TRAINING, 0.51, 2.0)
    assert after_one_step is not None
    assert after_one_step > 49 * 2.0


def test_nothing_is_estimated_for_a_model_of_unknown_dimensions(tmp_path: Path) -> None:
    run = Run(SPECS["default"], tmp_path)
    run.estimator = ProgressEstimator(SPECS["default"], lambda: run.now)
    source = find("tiny", roots=[tmp_path])
    (tmp_path / "tiny" / "model.safetensors").write_bytes(b"no header")
    run.estimator.expect(Speed(flops={Dtype.FLOAT32: 1e9}), source)
    for stage in run.stages[:-1]:
        run.left(stage, 0.0)
        assert run.left(stage, 0.5, 10.0) is None
    run.left(Stage.UPLOADING, 0.0)
    assert run.left(Stage.UPLOADING, 0.5, 10.0) == pytest.approx(10)
