"""The host seldom waits for the device while a linear is pruned, however many columns it has.

The device is simulated by `tests.seft.accelerator`, which counts how often a host would wait for a real one.
"""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seft.config import UNSTRUCTURED, Pattern, PruneConfig, PruneMethod
from seft.prune.alps import CHECK_EVERY, MOST_ITERATIONS
from seft.prune.mask import smallest_overall
from seft.prune.methods import make_pruner
from seft.prune.statistics import Batch
from tests.seft.accelerator import DEVICE, Accelerator
from tests.seft.prune.weights import correlated, make_weight

MOST_WAITS = {PruneMethod.ALPS: 1 + MOST_ITERATIONS // CHECK_EVERY}
"""ALPS reads how much changed each time it checks whether to stop."""


@pytest.mark.parametrize("pattern", [UNSTRUCTURED, Pattern(2, 4)], ids=str)
@pytest.mark.parametrize("method", PruneMethod)
def test_the_host_waits_at_most_three_times_for_a_linear(method: PruneMethod, pattern: Pattern) -> None:
    weight, inputs = make_weight(8, 640), correlated(800, 640)
    with Accelerator(limit=1 << 30) as accelerator:
        pruner = make_pruner(weight.to(DEVICE), 8 * 320, PruneConfig(0.5, method, pattern))
        for window in inputs.to(DEVICE).chunk(4):
            pruner.observe(Batch(window))
        assert accelerator.waits == 0
        pruned = pruner.prune()
        assert accelerator.waits <= MOST_WAITS.get(method, 3)
        assert int((pruned == 0).sum()) == 8 * 320


@settings(deadline=None)
@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 0.5, 2.0]), min_size=1, max_size=30), st.floats(0, 1))
def test_a_device_chooses_the_same_smallest_scores_as_a_cpu(scores: list[float], fraction: float) -> None:
    score, count = torch.tensor(scores), int(len(scores) * fraction)
    with Accelerator(limit=1 << 30) as accelerator:
        chosen = smallest_overall(score.to(DEVICE), count)
        assert accelerator.waits == 0
        assert torch.equal(chosen.to("cpu"), smallest_overall(score, count))


def test_the_simulated_device_counts_the_operations_that_wait() -> None:
    with Accelerator(limit=1 << 30) as accelerator:
        values = torch.arange(4.0).to(DEVICE)
        values.add_(1).masked_fill_(values > 2, 0.0).sum()
        assert accelerator.waits == 0
        waits: list[Callable[[], object]] = [
            lambda: float(values.sum()),
            lambda: bool(values.any()),
            values.nonzero,
            lambda: values[values > 2],
            lambda: values.to("cpu"),
        ]
        for number, wait in enumerate(waits, 1):
            wait()
            assert accelerator.waits == number
