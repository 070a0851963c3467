"""The Triton kernel, interpreted on the CPU, equals the product in float64. With a card, it runs there."""

import pytest
import torch

from seft.repair.sampled import by_kernel, sampled_product
from tests.seft.native.test_sample import make

pytest.importorskip("triton")
SHAPES = [(1, 1, 1), (31, 8, 9), (64, 17, 40), (130, 9, 33), (0, 3, 4)]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_entries_are_those_of_the_dense_product(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    from seft.repair import cuda

    left, right, positions = make(*shape, dtype)
    product = (left.double().T @ right.double()).flatten()[positions]
    size = (left.double().abs().T @ right.double().abs()).flatten()[positions]
    found = cuda.sample(left.to(DEVICE), right.to(DEVICE), positions.to(DEVICE)).cpu()
    assert found.dtype == torch.float32
    assert ((found.double() - product).abs() <= 2**-20 * size).all()
    assert cuda.sample(left.to(DEVICE), right.to(DEVICE), positions[:0].to(DEVICE)).shape == (0,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no card")
def test_the_card_gives_the_entries_of_the_cpu() -> None:
    left, right, positions = make(700, 120, 200, torch.bfloat16)
    found = by_kernel(left.cuda(), right.cuda(), positions.cuda()).cpu()
    torch.testing.assert_close(found, sampled_product(left, right, positions), rtol=1e-4, atol=1e-3)
