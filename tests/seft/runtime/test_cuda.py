"""The Triton kernels, interpreted on the CPU, equal the product in float64. With a card, a model runs on it."""

from pathlib import Path

import pytest
import torch

import seft
from seft.cli import main
from seft.runtime.accelerate import SparseLinear
from seft.runtime.compressed import Values, compress, expand
from tests.seft.runtime.test_kernels import SHARES, exact, make
from tests.tiny import sparse_tiny

pytest.importorskip("triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = [(1, 1), (9, 65), (17, 200), (32, 64), *([(2048, 5632), (4096, 4096)] if DEVICE.type == "cuda" else [])]
"""Small without a card, because the interpreter takes a second for ten panels."""


@pytest.mark.parametrize("values", Values)
@pytest.mark.parametrize("zeros", SHARES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_equals_the_one_in_float64(shape: tuple[int, int], zeros: float, values: Values) -> None:
    from seft.runtime import cuda

    weight, bias = make(*shape, zeros)
    matrix = compress(weight, bias, values)
    stored = expand(matrix)
    weight = stored.double() if matrix.scales is None else stored.double() * matrix.scales[:, None]
    matrix = matrix.to(DEVICE)
    assert torch.equal(cuda.expand(matrix, 0, shape[0]).cpu(), stored)
    for batch in (1, 3):
        x = torch.randn(batch, shape[1])
        product, magnitude = exact(x, weight, bias)
        assert ((cuda.multiply(x.to(DEVICE), matrix).cpu().double() - product).abs() <= 2**-19 * magnitude).all()


def test_some_rows_are_expanded_and_a_bias_is_optional() -> None:
    from seft.runtime import cuda

    weight, _ = make(40, 130, 0.6)
    matrix = compress(weight).to(DEVICE)
    assert torch.equal(cuda.expand(matrix, 8, 27).cpu(), weight[8:27] + 0)
    x = torch.randn(2, 130)
    assert torch.allclose(cuda.multiply(x.to(DEVICE), matrix).cpu(), x @ weight.float().T, atol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_device_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tmp_path), "a", "--device", "cuda"]) == 2
    assert "--device must be cpu on this machine" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no card")
def test_a_model_on_a_card_gives_the_logits_of_the_cpu() -> None:
    model = sparse_tiny()
    tokens = torch.randint(10, 300, (1, 12))
    expected = model.float()(tokens).logits
    model = seft.accelerate(model.to(torch.bfloat16).cuda())
    assert any(isinstance(module, SparseLinear) for module in model.modules())
    found = model(tokens.cuda()).logits.float().cpu()
    assert (found - expected).norm() < 0.02 * expected.norm()
