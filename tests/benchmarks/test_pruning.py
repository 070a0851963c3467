"""The plain SparseGPT, with which `benchmarks.pruning` compares ours."""

import copy
from unittest.mock import Mock

import pytest
import torch

from benchmarks import pruning
from benchmarks.pruning import PLAIN, prune_by_columns
from seft.config import Compare
from seft.models.targets import target_linears
from seft.prune import sparsegpt
from seft.prune.mask import Rule
from seft.prune.sparsegpt import inverse_factor, prune_columns
from tests.seft.prune.test_loop import WINDOWS
from tests.tiny import untrained_tiny


def test_the_plain_loop_prunes_as_the_blocks_do() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(40, 300, generator=generator), torch.randn(900, 300, generator=generator)
    weight[3, 200] = 0.0
    factor, rule = inverse_factor(inputs.T @ inputs, 0.01), Rule(7000, Compare.LAYER)
    plain, blocks = (prune(weight, factor, rule) for prune in (prune_by_columns, prune_columns))
    assert torch.equal(plain == 0, blocks == 0)
    assert int((plain == 0).sum()) == 7000
    torch.testing.assert_close(plain, blocks)


def test_the_plain_run_shares_nothing_and_gives_the_same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    factor, loop = Mock(wraps=inverse_factor), Mock(wraps=prune_by_columns)
    monkeypatch.setattr(sparsegpt, "inverse_factor", factor)
    monkeypatch.setattr(pruning, "prune_by_columns", loop)
    ours = untrained_tiny()
    plain, linears = copy.deepcopy(ours), target_linears(ours)
    pruning._prune(ours, WINDOWS, "sparsegpt 60%")
    assert (factor.call_count, loop.call_count) == (len(linears) * 4 // 7, 0)
    factor.reset_mock()
    pruning._prune(plain, WINDOWS, PLAIN)
    assert factor.call_count == loop.call_count == len(linears)
    for linear, other in zip(linears.values(), target_linears(plain).values(), strict=True):
        assert torch.equal(linear.weight == 0, other.weight == 0)
        torch.testing.assert_close(linear.weight, other.weight)
