"""Products of bfloat16 matrices that are computed in float32."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seft import float32_products
from seft.float32_products import FEW_ROWS, replace_products

SIDE = 8
SHAPES = [(4, 1, 1), (5, 8, 16), (16, 9, 7), (17, 40, 8), (33, 0, 5)]
"""Rows, inner size and columns: below, at and above the side of a tile."""


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Replace the products, with small parts, and yield the shapes of those computed. Afterwards, torch's are back."""
    registered: list[torch.library.Library] = []
    computed: list[str] = []
    multiply, differentiate = float32_products._multiply, float32_products._differentiate_attention

    def recorded(left: Tensor, *operands: Any, **scales: Any) -> Tensor:
        computed.append(str(tuple(left.shape)))
        return multiply(left, *operands, **scales)

    def attended(*operands: Any, **options: Any) -> list[Tensor]:
        computed.append("attention")
        return differentiate(*operands, **options)

    monkeypatch.setattr(float32_products, "_registered", registered)
    monkeypatch.setattr(float32_products, "SIDE", SIDE)
    monkeypatch.setattr(float32_products, "_multiply", recorded)
    monkeypatch.setattr(float32_products, "_differentiate_attention", attended)
    replace_products()
    replace_products()
    yield computed
    (library,) = registered
    library._destroy()  # type: ignore[no-untyped-call]


def make(*shape: int, seed: int = 0) -> Tensor:
    """Random bfloat16 values, laid out as a transposed matrix."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape[:-2], shape[-1], shape[-2], generator=generator).bfloat16().mT


def check(found: Tensor, expected: Tensor, size: Tensor) -> None:
    """Compare with float64. The error may come from one rounding to bfloat16, and from float32 sums of this `size`."""
    assert found.dtype == torch.bfloat16
    assert found.shape == expected.shape
    assert ((found.double() - expected).abs() <= 2**-8 * expected.abs() + 2**-20 * size).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("batch", [(), (5,), (0,)], ids=["one", "batch", "empty batch"])
def test_a_product_is_rounded_once(replaced: list[str], shape: tuple[int, int, int], batch: tuple[int, ...]) -> None:
    rows, inner, cols = shape
    left, right, start = make(*batch, rows, inner), make(*batch, inner, cols, seed=1), make(*batch, rows, cols, seed=2)
    expected, size = left.double() @ right.double(), left.double().abs() @ right.double().abs()
    check(torch.bmm(left, right) if batch else torch.mm(left, right), expected, size)
    add: Callable[..., Tensor] = torch.baddbmm if batch else torch.addmm
    check(add(start, left, right, beta=0.5, alpha=2), 0.5 * start.double() + 2 * expected, 2 * size + start.abs())
    check(add(torch.full_like(start, torch.nan), left, right, beta=0), expected, size)
    check(add(start[..., :1, :], left, right), start[..., :1, :].double() + expected, size + start[..., :1, :].abs())
    in_place = start.clone()
    same = in_place.baddbmm_(left, right) if batch else in_place.addmm_(left, right)
    assert same is in_place
    check(in_place, start.double() + expected, size + start.abs())
    assert len(replaced) == 5, "no product is torch's"


def test_gradients_of_a_linear_are_those_of_float32(replaced: list[str]) -> None:
    linear = nn.Linear(24, 40).bfloat16()
    x = torch.randn(2, 10, 24).bfloat16().requires_grad_()
    output = torch.randn(2, 10, 40).bfloat16()
    found = torch.autograd.grad(linear(x), [x, *linear.parameters()], output)
    assert len(replaced) == 3, "the forward product and two of the gradients"
    linear.float()
    wide = x.detach().float().requires_grad_()
    wanted = torch.autograd.grad(linear(wide), [wide, *linear.parameters()], output.float())
    for each, reference in zip(found, wanted, strict=True):
        assert each.dtype == torch.bfloat16
        assert torch.allclose(each.float(), reference, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 2**-7), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("masked", ["causal", "bias", "boolean", "nothing"])
def test_attention_and_its_gradients_are_those_of_float64(
    replaced: list[str], dtype: torch.dtype, error: float, masked: str
) -> None:
    *operands, output = (torch.randn(2, 40, 3, 8).bfloat16().transpose(1, 2) for _ in range(4))
    options: dict[str, Any] = {"scale": 0.3}
    match masked:
        case "causal":
            options["is_causal"] = True
        case "bias":
            options["attn_mask"] = torch.randn(2, 1, 40, 40).bfloat16()
        case "boolean":
            options["attn_mask"] = torch.ones(40, 40, dtype=torch.bool).tril()

    def attend(dtype: torch.dtype) -> list[Tensor]:
        own = [each.to(dtype).requires_grad_() for each in operands]
        mask = options.get("attn_mask")
        more = {} if mask is None or mask.dtype == torch.bool else {"attn_mask": mask.to(dtype)}
        attention: Any = nn.functional.scaled_dot_product_attention
        result = attention(*own, **{**options, **more})
        return [result, *torch.autograd.grad(result, own, output.to(dtype))]

    expected, found = attend(torch.float64), attend(dtype)
    assert replaced == ["attention"] * 2
    for each, reference in zip(found, expected, strict=True):
        assert each.dtype == dtype
        assert (each.double() - reference).abs().max() <= error * reference.abs().max()


def test_other_products_are_torchs(replaced: list[str]) -> None:
    """Torch computes products of other types and of few rows. The variants with `out=` are never replaced."""
    few, right = make(FEW_ROWS - 1, 24), make(24, 40)
    left, second = torch.randn(3, 20, 24), torch.randn(3, 24, 40)
    start = torch.randn(3, 20, 40)

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*shape, dtype=dtype)

    two = torch.stack((few, few)), torch.stack((right, right))
    scales: Any = {"beta": 0.5, "alpha": 2.0}
    pairs = [
        (few @ right, torch.mm(few, right, out=new(3, 40, dtype=torch.bfloat16))),
        (torch.bmm(*two), torch.bmm(*two, out=new(2, 3, 40, dtype=torch.bfloat16))),
        (left[0] @ second[0], torch.mm(left[0], second[0], out=new(20, 40))),
        (left @ second, torch.bmm(left, second, out=new(3, 20, 40))),
        (
            torch.addmm(start[0], left[0], second[0], **scales),
            torch.addmm(start[0], left[0], second[0], **scales, out=new(20, 40)),
        ),
        (
            torch.baddbmm(start, left, second, **scales),
            torch.baddbmm(start, left, second, **scales, out=new(3, 20, 40)),
        ),
        (start[0].clone().addmm_(left[0], second[0]), torch.addmm(start[0], left[0], second[0], out=new(20, 40))),
        (start.clone().baddbmm_(left, second), torch.baddbmm(start, left, second, out=new(3, 20, 40))),
    ]
    assert all(torch.equal(*pair) for pair in pairs)
    assert not replaced


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)], ids=str)
@pytest.mark.usefixtures("replaced")
def test_operands_of_two_types_are_refused(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    left, right = torch.ones(8, 8, dtype=dtypes[0]), torch.ones(8, 8, dtype=dtypes[1])
    products: list[Callable[[], object]] = [
        lambda: left @ right,
        lambda: left[None] @ right[None],
        lambda: torch.addmm(right, left, left),
        lambda: torch.baddbmm(right[None], left[None], left[None]),
    ]
    for product in products:
        with pytest.raises(RuntimeError, match=r"dtype|type"):
            product()


@pytest.mark.usefixtures("replaced")
def test_operands_that_do_not_fit_are_refused_and_change_nothing() -> None:
    small, large = make(SIDE, SIDE), make(2 * SIDE, 2 * SIDE)
    products: list[Callable[[], object]] = [
        lambda: small @ large,
        lambda: small[None] @ large[None],
        lambda: torch.stack((small, small)).bmm(torch.stack((small, small, small))),
        lambda: torch.addmm(large, small, small),
        lambda: small.addmm_(large, large),
        lambda: small[:1].addmm_(small, small),
        lambda: small[None].baddbmm_(large[None], large[None]),
    ]
    for product in products:
        with pytest.raises(RuntimeError):
            product()
    assert torch.equal(small, make(SIDE, SIDE))


@pytest.mark.parametrize(("library", "fast"), [(False, False), (True, False), (True, True)])
def test_products_are_replaced_only_where_torch_has_no_fast_ones(
    monkeypatch: pytest.MonkeyPatch, library: bool, fast: bool
) -> None:
    called: list[bool] = []
    functions = SimpleNamespace(**({"_is_mkldnn_bf16_supported": lambda: fast} if library else {}))
    monkeypatch.setattr(torch.ops, "mkldnn", functions)
    monkeypatch.setattr(float32_products, "replace_products", lambda: called.append(True))
    float32_products.use_float32_products()
    assert bool(called) is not fast
