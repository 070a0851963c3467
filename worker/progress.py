"""Compute the progress of a job and the seconds that remain, from its stages and their speed."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from core.estimate import calibration
from core.estimate.speed import LONGEST_SECONDS, Speed
from core.specs import JobSpec
from core.stages import Stage, stages_of
from core.states import Phase
from seft.errors import SourceError
from seft.models.dimensions import Dimensions, Matrix, read_dimensions
from seft.models.shapes import shapes
from seft.models.source import ModelSource

OTHERS = {Stage.LOADING: 0.02, Stage.EXPORTING: 0.04, Stage.UPLOADING: 0.02}
"""Weights of the stages that compute hardly anything, relative to the weights of all other stages together."""
HIDDEN, INNER = 2048, 5632
BLOCK = (
    Matrix(HIDDEN, HIDDEN, count=2),
    Matrix(HIDDEN // 8, HIDDEN, shares_inputs=True, count=2),
    Matrix(INNER, HIDDEN),
    Matrix(INNER, HIDDEN, shares_inputs=True),
    Matrix(HIDDEN, INNER),
)
TYPICAL = Dimensions(
    "llama", HIDDEN, 1_100_048_384, 32_000 * HIDDEN, HIDDEN, 32_000, HIDDEN, HIDDEN // 8, blocks=(BLOCK,) * 22
)
"""Dimensions of TinyLlama-1.1B. The operations of each stage of a job depend little on the size of the model."""
RECENT = 32
"""Number of reports, such as training steps, from which the speed of the current stage is computed."""


class Shares:
    """The share of each stage in the progress of a job.

    A stage counts as much as its floating-point operations, for a model of typical dimensions. So the progress does not
    depend on the device, and an attempt that resumes continues where the former one was.
    """

    def __init__(self, spec: JobSpec) -> None:
        self._stages, self._steps = stages_of(spec), spec.repair.steps
        weights = _by_stage(self._stages, calibration.count_operations(spec, TYPICAL))
        weights |= {other: part * sum(weights.values()) for other, part in OTHERS.items()}
        self._weights = [weights[stage] for stage in self._stages]

    def progress(self, stage: Stage, fraction: float) -> float:
        """Return the fraction (0 to 1) of the whole job that is done when `fraction` of `stage` is done."""
        place = self._stages.index(stage)
        done = sum(self._weights[:place]) + fraction * self._weights[place]
        return min(1.0, done / sum(self._weights))

    def reached(self, step: int | None) -> float:
        """Return the fraction (0 to 1) that is done in the state of a training step. None means no state."""
        if step is None:
            return 0.0
        if Stage.TRAINING in self._stages:
            return self.progress(Stage.TRAINING, step / self._steps)
        return self.progress(Stage.EXPORTING, 0.0)


def _by_stage(stages: Sequence[Stage], values: Mapping[Phase, float]) -> dict[Stage, float]:
    """Distribute the value of each phase evenly over its stages."""
    phases = [stage.phase for stage in stages]
    known = [stage for stage in stages if stage.phase in values]
    return {stage: values[stage.phase] / phases.count(stage.phase) for stage in known}


class ProgressEstimator:
    """Estimates the progress of a job and the seconds until it ends, in the process that runs it.

    It assumes that the current stage continues at its recent speed. A later evaluation takes as long as the last one of
    this attempt. Another later stage takes the time that is expected on this device. If nothing is known about the
    device, the stage takes as long per operation as the stage that was measured last.
    """

    def __init__(self, spec: JobSpec, clock: Callable[[], float] = time.monotonic) -> None:
        self._spec, self._stages, self._clock = spec, stages_of(spec), clock
        self.shares = Shares(spec)
        self.least = 0.0
        """Fraction of the job that earlier attempts have done. At least this fraction is reported."""
        self.last_step = math.inf
        """Step after which the training ends early, or infinity."""
        self._expected: dict[Stage, float] = {}
        """Expected seconds of each stage on this device. Empty if unknown."""
        self._operations: dict[Stage, float] = {}
        """Floating-point operations of each stage. Empty if unknown."""
        self._pace: float | None = None
        """Seconds per operation in the stage that was measured last."""
        self._took: dict[Phase, float] = {}
        """Seconds of the newest finished stage of each phase."""
        self._stage: Stage | None = None
        self._began = 0.0
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)
        """Time and fraction of the newest reports about the current stage that had progress."""

    def expect(self, speed: Speed, source: ModelSource) -> None:
        """Compute how long each stage is expected to take on a device of this speed.

        Does nothing if the dimensions of the model cannot be read from its files.
        """
        with suppress(SourceError):
            model = read_dimensions(source, shapes(source))
            self._expected = _by_stage(self._stages, speed.estimate(self._spec, model)[0])
            self._operations = _by_stage(self._stages, calibration.count_operations(self._spec, model))

    def report(self, stage: Stage, fraction: float) -> tuple[float, float | None]:
        """Record that `fraction` of a stage is done.

        Return the fraction of the whole job that is done, and the seconds until it ends, or None if they are unknown.
        """
        now = self._clock()
        if stage is not self._stage:
            if self._stage:
                self._took[self._stage.phase] = now - self._began
            self._stage, self._began = stage, now
            self._recent.clear()
        if len(self._recent) == 1 and fraction == self._recent[0][1]:
            self._recent.clear()  # the pace counts from the last report before the first progress
        if not self._recent or fraction > self._recent[-1][1]:
            self._recent.append((now, fraction))
        later = self._stages[self._stages.index(stage) + 1 :]
        seconds = [self._current(stage, now), *map(self._later, later)]
        known = [each for each in seconds if each is not None]
        is_known = len(known) == len(seconds) and sum(known) <= LONGEST_SECONDS
        return max(self.least, self.shares.progress(stage, fraction)), sum(known) if is_known else None

    def _current(self, stage: Stage, now: float) -> float | None:
        """Return the seconds until the current stage ends, or None if unknown."""
        (first, begin), (last, done) = self._recent[0], self._recent[-1]
        left = max(0.0, self._end(stage) - done)
        whole = self._expected.get(stage)
        if done > begin:
            whole = (last - first) / (done - begin)
            if operations := self._operations.get(stage):
                self._pace = whole / operations
        return None if whole is None else max(0.0, left * whole - (now - last))

    def _later(self, stage: Stage) -> float | None:
        """Return the seconds of a stage that has not begun, or None if unknown."""
        if stage.phase in self._took:
            return self._took[stage.phase]
        expected = self._expected.get(stage)
        if expected is None and self._pace is not None and stage in self._operations:
            expected = self._operations[stage] * self._pace
        return None if expected is None else expected * self._end(stage)

    def _end(self, stage: Stage) -> float:
        """Return the fraction of a stage after which it ends."""
        return min(1.0, self.last_step / self._spec.repair.steps) if stage is Stage.TRAINING else 1.0
