"""Products with compressed matrices equal the dense product, at every level of instructions that this machine has."""

import ctypes
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from seft.errors import AccelerateError
from seft.native import kernels
from seft.native.kernels import Level
from seft.prune.statistics import add_products
from seft.repair.sampled import by_kernel
from seft.runtime import compressed
from seft.runtime.compressed import (
    EXPANDED_FROM,
    MAX_INT8_COLS,
    Values,
    compress,
    dense_struct,
    expand,
    multiply,
    multiply_struct,
)

LEVELS: list[Level | None] = [each for each in Level if kernels.library() and kernels.library().seft_supported(each)]
SHAPES = [(1, 1), (8, 64), (9, 65), (17, 200), (63, 513), (300, 320)]
SHARES = [0.0, 0.6, 0.97, 1.0]


@pytest.fixture(params=LEVELS or [None], ids=str)
def level(request: pytest.FixtureRequest) -> Iterator[Level]:
    """Each level that the machine has, in use until the test ends."""
    if request.param is None:
        assert shutil.which("g++") is None, "there is a compiler, but the kernels were not built: install the package"
        pytest.skip("no compiler")
    before = kernels.level()
    assert before is not None
    kernels.library().seft_use_level(request.param)
    yield request.param
    kernels.library().seft_use_level(before)


def make(rows: int, cols: int, zeros: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A bfloat16 matrix in which a share is zero, some of it as -0.0, and a bias. One row is empty."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=random).bfloat16()
    weight = weight * (torch.rand(rows, cols, generator=random) >= zeros)
    weight[rows // 2] = 0
    return weight, torch.randn(rows, generator=random).bfloat16()


def exact(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The product in float64, and the sum of the magnitudes of its terms, which bounds the rounding."""
    product = x.double() @ weight.double().T + bias.double()
    return product, x.double().abs() @ weight.double().abs().T + bias.double().abs()


@pytest.mark.parametrize("zeros", SHARES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float32, 2**-19)])
def test_a_product_equals_the_one_in_float64_within_rounding(
    level: Level, shape: tuple[int, int], zeros: float, dtype: torch.dtype, rounding: float
) -> None:
    weight, bias = make(*shape, zeros)
    matrix = compress(weight, bias)
    for batch in (1, 2, 3, 4, 7, EXPANDED_FROM):
        x = torch.randn(batch, shape[1]).to(dtype)
        product, magnitude = exact(x, weight, bias)
        assert ((multiply(x, matrix).double() - product).abs() <= 1.01 * rounding * magnitude).all()


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_compression_is_exact(level: Level, rows: int, cols: int) -> None:
    weight, _ = make(rows, cols, 0.6)
    assert torch.equal(expand(compress(weight)), weight)
    assert torch.equal(expand(compress(weight), 0, rows - 1), weight[:-1]), "an end within a panel"
    if rows > 8:
        assert torch.equal(expand(compress(weight), 8, rows), weight[8:])
    quantised, scales = compressed.quantise(weight)
    assert torch.equal(expand(compress(weight, values=Values.INT8)), quantised.bfloat16())
    assert not quantised[weight == 0].any()
    assert ((quantised * scales[:, None] - weight.float()).abs() <= 0.501 * scales[:, None]).all()


@pytest.mark.parametrize(("rows", "cols"), [(16, 64), (300, 320), (9, 192)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_sparse_product_has_the_bits_of_the_dense_one(
    level: Level, rows: int, cols: int, dtype: torch.dtype
) -> None:
    weight, bias = make(rows, cols, 0.6)
    matrix, bias = compress(weight, bias), bias.float()
    for batch in (1, 5):
        x = torch.randn(batch, cols).to(dtype)
        assert torch.equal(multiply(x, matrix), multiply_struct(x, dense_struct(weight, bias)))


def test_a_product_does_not_depend_on_threads_or_on_the_other_rows(level: Level) -> None:
    weight, bias = make(512, 384, 0.6)
    x = torch.randn(7, 384).bfloat16()
    before = torch.get_num_threads()
    for values in Values:
        matrix = compress(weight, bias, values)
        products = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            products.append(multiply(x, matrix))
        torch.set_num_threads(before)
        assert all(torch.equal(product, products[0]) for product in products)
        assert torch.equal(torch.cat([multiply(row[None], matrix) for row in x]), products[0])


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_int8_products_have_the_same_bits_at_every_level(level: Level, rows: int, cols: int) -> None:
    """Sums of integers are exact, so only the quantisation rounds."""
    weight, bias = make(rows, cols, 0.6)
    matrix = compress(weight, bias, Values.INT8)
    x = torch.randn(4, cols)
    found = multiply(x, matrix)
    kernels.library().seft_use_level(Level.PLAIN)
    assert torch.equal(found, multiply(x, matrix))
    integers, scales = compressed.quantise(weight)
    weights = integers.double() * scales.double()[:, None]
    product, magnitude = exact(x, weights, bias)
    half = x.double().abs().amax(dim=1, keepdim=True) / (2 * 2047)  # x has 12 bits
    assert ((found.double() - product).abs() <= half * weights.abs().sum(dim=1) + 2**-20 * magnitude).all()


@pytest.mark.parametrize("cols", [MAX_INT8_COLS, MAX_INT8_COLS + 1])
def test_the_largest_sums_of_int8_products_do_not_overflow(level: Level, cols: int) -> None:
    matrix = compress(torch.ones(3, cols), values=Values.INT8)
    assert torch.allclose(multiply(torch.ones(1, cols), matrix), torch.tensor(float(cols)), rtol=1e-5)


def test_a_row_of_x_that_is_not_finite_spoils_only_itself(level: Level) -> None:
    weight, bias = make(17, 200, 0.6)
    x = torch.randn(3, 200)
    x[1, 5] = torch.inf
    for values in Values:
        matrix = compress(weight, bias, values)
        found = multiply(x, matrix)
        assert torch.equal(found[::2], multiply(x[::2], matrix))
        assert not found[1, weight[:, 5] != 0].isfinite().any()
    assert found[1].isnan().all(), "int8: one scale for the row"
    zero = multiply(torch.zeros(1, 200), matrix)
    assert torch.equal(zero[0], bias.float())


def test_without_compiled_kernels_torch_gives_the_same_product(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias = make(63, 513, 0.6)
    x = torch.randn(3, 513)
    found = {values: multiply(x, compress(weight, bias, values)) for values in Values}
    monkeypatch.setattr(kernels, "library", lambda: None)
    assert torch.equal(expand(compress(weight)), weight)
    assert torch.equal(expand(compress(weight), 8, 20), weight[8:20])
    product, magnitude = exact(x, weight, bias)
    assert ((multiply(x, compress(weight, bias)).double() - product).abs() <= 2**-19 * magnitude).all()
    other = multiply(x, compress(weight, bias, Values.INT8))
    assert torch.allclose(found[Values.INT8], other, atol=0.02 * float(product.abs().max()))


def test_weights_that_bfloat16_does_not_hold_are_refused() -> None:
    with pytest.raises(
        AccelerateError, match=r"must be bfloat16 values; .* \(--dtype bfloat16\), .* \(--values int8\)"
    ):
        compress(torch.full((2, 2), 1.0001))


def test_an_input_of_another_size_or_dtype_is_refused(level: Level) -> None:
    matrix = compress(make(8, 64, 0.6)[0])
    for wrong in (torch.randn(1, 63), torch.randn(1, 64).double()):
        with pytest.raises(AccelerateError, match="x must be"):
            multiply(wrong, matrix)


@pytest.mark.parametrize("name", ["PANEL", "BLOCK", "MAX_INT8_COLS"])
def test_python_and_the_kernels_have_the_same_sizes(name: str) -> None:
    header = Path(kernels.__file__).with_name("matrix.h").read_text()
    (size,) = re.findall(rf"constexpr int(?:64_t)? {name} = (\d+);", header)
    assert int(size) == getattr(compressed, name)


def test_kernels_without_the_threads_of_torch_warn(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if kernels.library() is None:
        pytest.skip("no compiler")
    load = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda path: load(path) if path else object())
    assert kernels.library.__wrapped__() is not None
    assert "kernels of seft.native run correctly, but in one thread" in caplog.text


def test_a_level_needs_every_feature_for_which_it_is_compiled() -> None:
    folder = Path(kernels.__file__).parent
    clang = re.findall(r'__attribute__\(\(target\([\s\\]*"(.*)"\)', (folder / "levels.h").read_text())
    targets = re.findall(r'#pragma GCC target\("(.*)"\)', (folder / "levels.h").read_text())
    asked = set(re.findall(r'__builtin_cpu_supports\("(\w+)"\)', (folder / "kernels.cpp").read_text()))
    assert len(targets) == 2
    assert clang == targets
    assert set(",".join(targets).split(",")) == asked


@pytest.mark.parametrize(
    ("product", "message"),
    [
        (lambda x: multiply(x, compress(x)), "no memory for a copy of x with 8 rows and 64 columns"),
        (lambda x: by_kernel(x, x, torch.zeros(1, dtype=torch.int32)), "no memory for a copy of the factors"),
        (lambda x: add_products(None, x, 0, 1), "no memory for a copy of the inputs of a Hessian, 8 tokens of 64"),
    ],
)
def test_a_kernel_without_memory_says_what_it_is_for(
    product: Callable[[Tensor], Tensor], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "library", Mock)  # every function returns something true
    monkeypatch.setattr(kernels, "level", lambda: Level.AVX512)
    with pytest.raises(MemoryError, match=message):
        product(torch.ones(8, 64).bfloat16())
