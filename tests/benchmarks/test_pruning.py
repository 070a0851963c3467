"""The plain loop of SparseGPT, with which `benchmarks.pruning` compares ours."""

import torch

from benchmarks.pruning import prune_by_columns
from seft.config import Compare
from seft.prune.mask import Rule
from seft.prune.sparsegpt import inverse_factor, prune_columns


def test_the_plain_loop_prunes_as_the_blocks_do() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(40, 300, generator=generator), torch.randn(900, 300, generator=generator)
    weight[3, 200] = 0.0
    factor, rule = inverse_factor(inputs.T @ inputs, 0.01), Rule(7000, Compare.LAYER)
    plain, blocks = (prune(weight, factor, rule) for prune in (prune_by_columns, prune_columns))
    assert torch.equal(plain == 0, blocks == 0)
    assert int((plain == 0).sum()) == 7000
    torch.testing.assert_close(plain, blocks)
