"""What stands in for products sees each of them with its inputs, and nothing uses a weight unseen."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from seft.errors import SourceError
from seft.models.products import Handler, take_over, taken_over
from seft.models.targets import Target, block_linears

INPUTS = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


class Experts(nn.Module):
    """Three experts in one parameter, used in a way that is given."""

    def __init__(self, use: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...], transposed: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.is_transposed = transposed
        self.use = use

    def forward(self, inputs: Tensor) -> Tensor:
        return self.use(inputs, self.weight)


def noting(seen: list[tuple[str, Tensor]], name: str) -> Handler:
    def handle(inputs: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        seen.append((name, inputs))
        return product(inputs)

    return handle


@pytest.mark.parametrize("linear", [nn.Linear(3, 4), nn.Linear(3, 4, bias=False), Conv1D(4, 3)])
def test_a_module_with_one_matrix_shows_its_inputs_until_it_is_released(linear: nn.Module) -> None:
    expected, seen = linear(INPUTS), list[tuple[str, Tensor]]()
    release = take_over({Target(linear, transposed=isinstance(linear, Conv1D)): noting(seen, "it")})
    assert torch.equal(linear(INPUTS), expected)
    release()
    assert torch.equal(linear(INPUTS), expected)
    assert "forward" not in vars(linear)
    assert [name for name, _ in seen] == ["it"]
    assert seen[0][1] is INPUTS


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
    expected, seen = block["experts"](INPUTS), list[tuple[str, Tensor]]()
    with taken_over({target: noting(seen, name) for name, target in block_linears(block).items()}):
        assert torch.equal(block["experts"](INPUTS), expected)
    assert [name for name, _ in seen] == ["experts.weight.1"]
    assert seen[0][1] is INPUTS


@pytest.mark.parametrize(
    "use",
    [
        lambda inputs, weight: torch.bmm(inputs.expand(3, -1, -1), weight.mT),
        lambda inputs, weight: F.linear(inputs, weight[torch.tensor([1, 2])][0]),
        lambda inputs, weight: F.linear(inputs, weight[1, :2]),
        lambda inputs, weight: torch.einsum("ti,eoi->teo", inputs, weight),
    ],
)
def test_a_weight_that_is_used_in_another_way_is_refused(use: Callable[[Tensor, Tensor], Tensor]) -> None:
    block = nn.ModuleDict({"experts": Experts(use, (3, 4, 3), transposed=False)})
    handlers = {target: noting([], name) for name, target in block_linears(block).items()}
    with taken_over(handlers), pytest.raises(SourceError, match="Experts uses"):
        block["experts"](INPUTS)
