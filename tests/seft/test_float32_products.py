"""Products of bfloat16 matrices that are computed in float32."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from seft import float32_products, processor
from seft.float32_products import FEW_ROWS, replace_products

SIDE = 8
SHAPES = [(4, 1, 1), (5, 8, 16), (16, 9, 7), (17, 40, 8), (33, 0, 5)]
"""Rows, inner size and columns: below, at and above the side of a tile."""


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replace the products, with small tiles. Afterwards, torch's own products are back."""
    registered: list[torch.library.Library] = []
    monkeypatch.setattr(float32_products, "_registered", registered)
    monkeypatch.setattr(float32_products, "SIDE", SIDE)
    replace_products()
    replace_products()
    yield
    (library,) = registered
    library._destroy()  # type: ignore[no-untyped-call]


def make(*shape: int) -> Tensor:
    """Random bfloat16 values, laid out as a transposed matrix."""
    return torch.randn(*shape[:-2], shape[-1], shape[-2], generator=torch.Generator().manual_seed(0)).bfloat16().mT


def check(found: Tensor, expected: Tensor, size: Tensor) -> None:
    """Compare with float64. The error is that of one rounding to bfloat16, and of float32 sums of this `size`."""
    assert found.dtype == torch.bfloat16
    assert ((found.double() - expected).abs() <= 2**-8 * expected.abs() + 2**-20 * size).all()


@pytest.mark.usefixtures("replaced")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("batch", [(), (3,)], ids=["one", "batch"])
def test_a_product_is_rounded_once(shape: tuple[int, int, int], batch: tuple[int, ...]) -> None:
    rows, inner, cols = shape
    left, right, start = make(*batch, rows, inner), make(*batch, inner, cols), make(*batch, rows, cols)
    expected, size = left.double() @ right.double(), left.double().abs() @ right.double().abs()
    check(left @ right, expected, size)
    add: Callable[..., Tensor] = torch.baddbmm if batch else torch.addmm
    check(add(start, left, right, beta=0.5, alpha=2), 0.5 * start.double() + 2 * expected, 2 * size + start.abs())
    check(add(torch.full_like(start, torch.nan), left, right, beta=0), expected, size)
    check(add(start[..., :1, :], left, right), start[..., :1, :].double() + expected, size + start[..., :1, :].abs())
    in_place = start.clone()
    same = in_place.baddbmm_(left, right) if batch else in_place.addmm_(left, right)
    assert same is in_place
    check(in_place, start.double() + expected, size + start.abs())


@pytest.mark.usefixtures("replaced")
def test_gradients_of_a_linear_are_those_of_float32() -> None:
    linear = nn.Linear(24, 40)
    x = torch.randn(2, 10, 24).bfloat16()
    wanted = torch.autograd.grad(linear.bfloat16().float()(x.float()).square().sum(), list(linear.parameters()))
    linear.bfloat16()
    found = torch.autograd.grad(linear(x).square().sum(), list(linear.parameters()))
    for each, reference in zip(found, wanted, strict=True):
        assert each.dtype == torch.bfloat16
        assert torch.allclose(each.float(), reference, rtol=0.02, atol=0.02 * float(reference.abs().max()))


def test_other_products_keep_their_bits(replaced: None, request: pytest.FixtureRequest) -> None:
    few, right = make(FEW_ROWS - 1, 24), make(24, 40)
    floats = torch.randn(3, 20, 24), torch.randn(3, 24, 40)

    def products() -> list[Tensor]:
        start = floats[0][0, :, :1]
        return [
            few @ right,
            torch.addmm(few[:, :1], few, right),
            floats[0] @ floats[1],
            floats[0][0] @ floats[1][0],
            torch.addmm(start, floats[0][0], floats[1][0], beta=0.5, alpha=2),
            torch.baddbmm(start, *floats),
            floats[0][0].new_ones(20, 40).addmm_(floats[0][0], floats[1][0]),
            floats[0].new_ones(3, 20, 40).baddbmm_(*floats),
        ]

    found = products()
    float32_products._registered[0]._destroy()  # type: ignore[no-untyped-call]
    assert all(map(torch.equal, found, products()))


@pytest.mark.parametrize("instructions", [False, True])
def test_products_are_replaced_only_without_instructions(monkeypatch: pytest.MonkeyPatch, instructions: bool) -> None:
    replaced: list[bool] = []
    monkeypatch.setattr(processor, "has_bfloat16", lambda: instructions)
    monkeypatch.setattr(float32_products, "replace_products", lambda: replaced.append(True))
    float32_products.use_float32_products()
    assert bool(replaced) is not instructions
