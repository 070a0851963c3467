"""Handlers of intercepted products get every product with its inputs, and no use of a weight goes unnoticed."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from seft.errors import SourceError
from seft.models.products import Handler, intercept_products, intercepted_products
from seft.models.targets import Target, block_linears

INPUTS = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


class Experts(nn.Module):
    """Three experts in one parameter. `use` computes the output from the inputs and the parameter."""

    def __init__(self, use: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...], transposed: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.is_transposed = transposed
        self.use = use

    def forward(self, inputs: Tensor) -> Tensor:
        return self.use(inputs, self.weight)


def recording(calls: list[tuple[str, Tensor]], name: str) -> Handler:
    def handle(inputs: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        calls.append((name, inputs))
        return product(inputs)

    return handle


@pytest.mark.parametrize("linear", [nn.Linear(3, 4), nn.Linear(3, 4, bias=False), Conv1D(4, 3)])
def test_the_product_of_a_module_with_one_matrix_is_intercepted_until_it_is_restored(linear: nn.Module) -> None:
    expected, calls = linear(INPUTS), list[tuple[str, Tensor]]()
    restore = intercept_products({Target(linear, transposed=isinstance(linear, Conv1D)): recording(calls, "only")})
    assert torch.equal(linear(INPUTS), expected)
    restore()
    assert torch.equal(linear(INPUTS), expected)
    assert "forward" not in vars(linear)
    assert [name for name, _ in calls] == ["only"]
    assert calls[0][1] is INPUTS


@pytest.mark.parametrize(
    ("use", "shape", "transposed"),
    [
        (lambda inputs, weight: F.linear(inputs, weight[torch.tensor(1)]), (3, 4, 3), False),
        (lambda inputs, weight: inputs @ weight[1].T, (3, 4, 3), False),
        (lambda inputs, weight: inputs @ weight[1], (3, 3, 4), True),
        (lambda inputs, weight: torch.matmul(inputs, weight.unbind()[1]), (3, 3, 4), True),
        (lambda inputs, weight: F.linear(inputs, weight[1]), (3, 3, 3), False),
        (lambda inputs, weight: F.linear(inputs, weight[1].T), (3, 3, 3), True),
    ],
)
def test_a_product_with_one_of_stacked_matrices_is_recognised(
    use: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...], transposed: bool
) -> None:
    block = nn.ModuleDict({"experts": Experts(use, shape, transposed)})
    expected, calls = block["experts"](INPUTS), list[tuple[str, Tensor]]()
    with intercepted_products({target: recording(calls, name) for name, target in block_linears(block).items()}):
        assert torch.equal(block["experts"](INPUTS), expected)
    assert [name for name, _ in calls] == ["experts.weight.1"]
    assert calls[0][1] is INPUTS


@pytest.mark.parametrize(
    "use",
    [
        lambda inputs, weight: torch.bmm(inputs.expand(3, -1, -1), weight.mT),
        lambda inputs, weight: F.linear(inputs, weight[torch.tensor([1, 2])][0]),
        lambda inputs, weight: F.linear(inputs, weight[1, :2]),
        lambda inputs, weight: torch.einsum("ti,eoi->teo", inputs, weight),
    ],
)
def test_any_other_use_of_a_stacked_weight_is_rejected(use: Callable[[Tensor, Tensor], Tensor]) -> None:
    block = nn.ModuleDict({"experts": Experts(use, (3, 4, 3), transposed=False)})
    handlers = {target: recording([], name) for name, target in block_linears(block).items()}
    with intercepted_products(handlers), pytest.raises(SourceError, match="Experts combines several in"):
        block["experts"](INPUTS)
