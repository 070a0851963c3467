"""The memory of each phase of a job counts everything that is in memory at its peak."""

from typing import Any

import pytest

from core.estimate.footprint import memory_by_phase, retained_bytes
from core.specs import JobSpec
from core.states import Phase
from seft.models.dimensions import Dimensions, Matrix
from tests.core.estimate.test_fitting import MINIMAL

MODEL = Dimensions("Large", 2048, 10**9, 10**8, 1000, 128000, 1000, 1000, blocks=((Matrix(1000, 1000),) * 8,) * 100)
SMALL_STEPS = {"activation_checkpointing": True, "retain": "none"}


def spec_of(**more: Any) -> JobSpec:
    return JobSpec.model_validate({**MINIMAL, **more})


@pytest.mark.parametrize("phase", [Phase.EVALUATING, Phase.WRITING, Phase.PRUNING, Phase.TRAINING, Phase.EXPORTING])
def test_the_predictions_for_the_retained_text_are_on_the_host_from_the_writing_on(phase: Phase) -> None:
    few, many = (spec_of(repair={"retain_tokens": tokens}) for tokens in (1 << 14, 1 << 18))
    more = retained_bytes(many) - retained_bytes(few)
    assert more > 0
    before, after = (memory_by_phase(MODEL, spec) for spec in (few, many))
    assert after[phase].host - before[phase].host == more
    assert after[phase].combined - before[phase].combined == more
    assert after[Phase.LOADING] == before[Phase.LOADING]
