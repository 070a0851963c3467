"""The Triton kernels, interpreted on the CPU, equal their formulas. With a card, they run there."""

import pytest
import torch

from seft.repair.sampled import by_kernel
from seft.seeds import number
from tests.seft.native.test_sample import make
from tests.seft.repair import test_passes

pytest.importorskip("triton")
HALVES = [(torch.float16, torch.float16), (torch.float16, torch.float32)]
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


@pytest.mark.parametrize("dtypes", [*test_passes.DTYPES, *HALVES], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (65, 140)], ids=str)
def test_the_passes_of_the_optimizer_are_those_of_the_cpu(
    shape: tuple[int, int], dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    from seft.repair import cuda

    tensors = test_passes.make(*shape, *dtypes)
    expected = test_passes.run(tensors)
    weight, gradient, row_scales, col_scales = (each.to(DEVICE) for each in tensors)
    sums = cuda.square_sums(weight, gradient)
    total = cuda.scaled_square_sum(gradient, row_scales, col_scales)
    cuda.change(weight, gradient, row_scales, col_scales, number(1, "layer"))
    for found, known in zip((*sums, total), expected, strict=False):
        torch.testing.assert_close(found.cpu(), known, rtol=1e-5, atol=0)
    assert torch.equal(gradient.cpu(), expected[3])
    if DEVICE.type == "cpu":
        assert torch.equal(weight, expected[4])
    elif weight.dtype == torch.float32:  # a card rounds a product and a sum once
        torch.testing.assert_close(weight.cpu(), expected[4], rtol=2**-22, atol=1e-5)
    else:  # so it can choose another neighbour
        assert float((weight.cpu() != expected[4]).float().mean()) <= 0.01


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no card")
def test_the_card_takes_the_optimizer_step_of_the_cpu() -> None:
    tensors = test_passes.make(300, 700, torch.bfloat16, torch.bfloat16)
    expected = test_passes.run(tensors)
    found = test_passes.run(tuple(each.cuda() for each in tensors))
    torch.testing.assert_close(found[-1].cpu(), expected[-1], rtol=2**-7, atol=2**-7)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no card")
def test_the_card_gives_the_entries_of_the_product() -> None:
    left, right, positions = make(700, 120, 200, torch.bfloat16)
    found = by_kernel(left.cuda(), right.cuda(), positions.cuda()).cpu()
    product = (left.double().T @ right.double()).flatten()[positions]
    torch.testing.assert_close(found.double(), product, rtol=1e-4, atol=1e-3)
