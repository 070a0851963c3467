"""Steps in common buffers: the same bits as a step for each linear, also after some have replaced their positions."""

import pytest
import torch
from torch import Tensor

from seft.repair import optimizer
from seft.repair.active import Active
from seft.repair.fixed_mask import FlatOptimizer
from seft.repair.linear import RepairedLinear
from tests.seft.repair.repairing import as_target, sparse_linear

SIZES = [(24, 16), (1, 1), (70, 33), (400, 300)]
"""Shapes of the linears. In the largest one, torch splits the active positions among threads."""


def linears(dtypes: list[torch.dtype], *, transposed: bool = False) -> list[RepairedLinear]:
    weights = [sparse_linear(*size, 0.6, seed).weight.detach() for seed, size in enumerate(SIZES)]
    weights[1].fill_(1.0)
    typed = [weight.to(dtype) for weight, dtype in zip(weights, dtypes, strict=True)]
    typed = [weight.mT.contiguous().mT for weight in typed] if transposed else typed
    result = [RepairedLinear(as_target(weight), 0.7, torch.Generator().manual_seed(0)) for weight in typed]
    for number, linear in enumerate(result):
        linear.typical = torch.tensor(0.1 * number)  # the first one is unknown
        linear.active.ages.copy_(torch.arange(len(linear.active)) % 7)
    return result


def gradients(of: list[RepairedLinear], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(len(linear.active), generator=generator) for linear in of]


def step_alone(linear: RepairedLinear, active: Active, gradient: Tensor) -> None:
    """Take a step with a list of active positions that shares no memory with the linear's own list."""
    typical = float(linear.typical) or torch.inf
    optimizer.step(active, gradient, 0.1, 0.5, torch.full_like(gradient, typical))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "dtypes", [[torch.float32] * 4, [torch.bfloat16] * 4, [torch.float16] * 4, [torch.bfloat16, torch.float32] * 2]
)
def test_a_step_of_all_has_the_bits_of_a_step_of_each(dtypes: list[torch.dtype], *, transposed: bool) -> None:
    together = linears(dtypes, transposed=transposed)
    flat = FlatOptimizer(together)  # if dtypes are mixed, all have the widest one from now on
    copies = [Active(*(tensor.clone() for tensor in linear.active.tensors().values())) for linear in together]
    for seed in range(3):
        flat.update(gradients(together, seed), 0.1, 0.5)
        for linear, active, gradient in zip(together, copies, gradients(together, seed), strict=True):
            step_alone(linear, active, gradient)
            assert all(map(torch.equal, linear.active.tensors().values(), active.tensors().values()))
            expected = active.values.to(linear.weight.dtype)
            assert torch.equal(linear.weight.flatten()[active.indices.long()], expected)


def test_the_next_step_trains_the_positions_that_a_linear_has_then() -> None:
    together = linears([torch.float32] * 4)
    flat = FlatOptimizer(together)
    flat.update(gradients(together, 0), 0.1, 0.5)
    changed = together[2]
    before = changed.weight.clone()
    changed.adopt(changed.active[torch.arange(5)])
    flat.update(gradients(together, 1), 0.1, 0.5)
    moved = (changed.weight != before).flatten().nonzero().squeeze(1)
    assert torch.equal(moved, changed.active.indices.long())
    assert torch.equal(changed.weight.flatten()[moved], changed.active.values)


def test_all_linears_share_one_buffer_per_field() -> None:
    together = linears([torch.float32] * 4)
    flat = FlatOptimizer(together)
    for _ in range(2):
        for name in together[0].active.tensors():
            assert len({linear.active.tensors()[name].untyped_storage().data_ptr() for linear in together}) == 1
        together[0].adopt(together[0].active[torch.arange(3)])
        flat.gather()
