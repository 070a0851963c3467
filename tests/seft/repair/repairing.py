"""What tests of repair share: a small pruned model, text, a short configuration, a window over random gradients."""

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from seft.config import Pattern, PruneConfig, PruneMethod, RepairConfig
from seft.models.targets import target_linears
from seft.prune.loop import prune_model
from seft.repair import Repair
from seft.repair.best import Judge
from seft.repair.linear import RepairedLinear
from seft.repair.window import Window
from tests.tiny import VOCABULARY, untrained_tiny

TOKENS = torch.randint(VOCABULARY, (2000,), generator=torch.Generator().manual_seed(1))

PRUNED = PruneConfig(0.6, samples=4, tokens=32)
"""How to prune again what `pruned_tiny` made."""


def short(**changes: object) -> RepairConfig:
    """Eight steps with events after the first, the third and the sixth."""
    fields = {"steps": 8, "density": 0.02, "update_interval": 3, "drop_rate": 0.5, "batch_tokens": 96, "settle": 0.1}
    return RepairConfig(**{**fields, "sequence_tokens": 32, "micro_batch": 2, **changes})  # type: ignore[arg-type]


@torch.no_grad()
def zero_smallest(model: nn.Module, share: float = 0.6) -> None:
    """Prune each target linear by magnitude."""
    for linear in target_linears(model).values():
        linear.weight[linear.weight.abs() <= linear.weight.abs().flatten().quantile(share)] = 0


def pruned_tiny(dtype: torch.dtype = torch.float32) -> Any:
    """Always the same untrained model, pruned."""
    model = untrained_tiny()
    zero_smallest(model)
    return model.to(dtype)


def zero_in_groups(model: nn.Module, pattern: Pattern) -> None:
    """Prune each target linear by magnitude in an N:M pattern."""
    prune_model(model, TOKENS[:0].view(0, 8), by_magnitude(pattern))


def in_pattern(pattern: Pattern) -> Any:
    """Always the same untrained model, pruned by magnitude."""
    model = untrained_tiny()
    zero_in_groups(model, pattern)
    return model


def by_magnitude(pattern: Pattern) -> PruneConfig:
    """How `zero_in_groups` prunes, and `zero_smallest` but for its share."""
    share = pattern.sparsity(None if pattern.grouped else PRUNED.sparsity)
    return PruneConfig(share, PruneMethod.MAGNITUDE, pattern)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all target weights."""
    return {name: linear.weight.detach().clone() for name, linear in target_linears(model).items()}


def same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether all weights are equal to the last bit."""
    return all(torch.equal(left[name], right[name]) for name in left | right)


def nonzeros(model: nn.Module) -> dict[str, int]:
    """How many there are in each target."""
    return {name: int(linear.weight.count_nonzero()) for name, linear in target_linears(model).items()}


def repaired(
    config: RepairConfig, steps: int | None = None, dtype: torch.dtype = torch.float32, judge: Judge | None = None
) -> tuple[Any, Repair]:
    """The pruned model after so many steps, or all of them."""
    model = pruned_tiny(dtype)
    repair = Repair(model, TOKENS, config, pruned=PRUNED, judge=judge)
    for _ in range(config.steps if steps is None else steps):
        repair.advance()
    return model, repair


def sparse_linear(rows: int, cols: int, sparsity: float, seed: int = 0, **options: object) -> nn.Linear:
    """A random linear with about so many zeros."""
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(cols, rows, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        linear.weight.copy_(torch.randn(rows, cols, generator=generator))
        linear.weight[torch.rand(rows, cols, generator=generator) < sparsity] = 0
    return linear


def look(repaired: RepairedLinear, count: int, generator: torch.Generator, batches: int = 2) -> Window:
    """Open a window and let it see random micro-batches."""
    rows, cols = repaired.weight.shape
    dtype = repaired.weight.dtype
    window = repaired.open_window(count, 1)
    for _ in range(batches):
        left, right = (torch.randn(5, size, generator=generator).to(dtype) for size in (rows, cols))
        window.observe(left, right, repaired.active.indices)
    return window


class Allocated(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the most elements of a tensor that did not share memory with what it was made of."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {each.untyped_storage().data_ptr() for each in args if _is_dense(each)}
        result = func(*args, **(kwargs or {}))
        if _is_dense(result) and result.untyped_storage().data_ptr() not in known:
            self.elements = max(self.elements, result.numel())
        return result


def _is_dense(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.layout is torch.strided
