"""Helpers for tests of repair: a small pruned model, text, a short configuration, a window over random gradients."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.utils._python_dispatch import TorchDispatchMode

from seft.config import Pattern, PruneConfig, PruneMethod, RepairConfig
from seft.models.targets import Target, target_linears
from seft.prune.loop import prune_model
from seft.repair import Repair
from seft.repair.fixed_mask import FlatOptimizer
from seft.repair.linear import RepairedLinear
from seft.repair.window import Window
from tests.tiny import VOCABULARY, untrained_tiny

TOKENS = torch.randint(VOCABULARY, (2000,), generator=torch.Generator().manual_seed(1))

PRUNED = PruneConfig(0.6, samples=4, tokens=32)
"""Settings to prune the model of `pruned_tiny` again."""


def short(**changes: object) -> RepairConfig:
    """Return a configuration of eight steps, with events after steps 1, 3 and 6. As published: after 5 and 6."""
    fields = {"steps": 8, "density": 0.02, "update_interval": 3, "drop_rate": 0.5, "batch_tokens": 96, "settle": 0.1}
    return RepairConfig(**{**fields, "sequence_tokens": 32, "micro_batch": 2, **changes})  # type: ignore[arg-type]


def as_target(weight: Tensor) -> Target:
    """Return a target whose weight matrix shares memory with `weight`."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return Target(linear)


def in_two_processes(work: Callable[[Path], None], folder: Path) -> None:
    """Call `work(folder)` in two new processes that gloo connects, with one thread each. It must be in a module."""
    spawn(_connected, (work, folder), nprocs=2)  # type: ignore[no-untyped-call]


def _connected(rank: int, work: Callable[[Path], None], folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    work(folder)
    dist.destroy_process_group()


@torch.no_grad()
def zero_smallest(model: nn.Module, sparsity: float = 0.6) -> None:
    """Prune each target linear by magnitude."""
    for linear in target_linears(model).values():
        linear.weight[linear.weight.abs() <= linear.weight.abs().flatten().quantile(sparsity)] = 0


def pruned_tiny(dtype: torch.dtype = torch.float32) -> Any:
    """Return the same untrained, pruned model on every call."""
    model = untrained_tiny()
    zero_smallest(model)
    return model.to(dtype)


def zero_in_groups(model: nn.Module, pattern: Pattern) -> None:
    """Prune each target linear by magnitude to an N:M pattern."""
    prune_model(model, TOKENS[:0].view(0, 8), by_magnitude(pattern))


def in_pattern(pattern: Pattern) -> Any:
    """Return the same untrained model on every call, pruned by magnitude to a pattern."""
    model = untrained_tiny()
    zero_in_groups(model, pattern)
    return model


def by_magnitude(pattern: Pattern) -> PruneConfig:
    """Return the settings of `zero_in_groups`, and of `zero_smallest` except its sparsity."""
    sparsity = pattern.sparsity(None if pattern.grouped else PRUNED.sparsity)
    return PruneConfig(sparsity, PruneMethod.MAGNITUDE, pattern)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all target weights."""
    return {name: linear.weight.detach().clone() for name, linear in target_linears(model).items()}


def logits(model: Any) -> Tensor:
    """Return the predictions for a part of the text."""
    with torch.no_grad():
        result: Tensor = model(input_ids=TOKENS[:64].view(2, 32), use_cache=False).logits
    return result


def same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Return whether all weights are equal bit for bit."""
    return all(torch.equal(left[name], right[name]) for name in left | right)


def nonzeros(model: nn.Module) -> dict[str, int]:
    """Return the number of nonzeros of each target."""
    return {name: int(linear.weight.count_nonzero()) for name, linear in target_linears(model).items()}


def repaired(
    config: RepairConfig,
    steps: int | None = None,
    dtype: torch.dtype = torch.float32,
    **inputs: Any,
) -> tuple[Any, Repair]:
    """Return the pruned model and its repair after `steps` steps; None: after all. The repair also gets `inputs`."""
    model = pruned_tiny(dtype)
    repair = Repair(model, TOKENS, config, pruned=PRUNED, **inputs)
    for _ in range(config.steps if steps is None else steps):
        repair.advance()
    return model, repair


def assert_resumes(start: Callable[[], tuple[Any, Repair]], folder: Path) -> tuple[Any, Repair]:
    """Assert that a repair that is resumed after any step gives the bits of an uninterrupted one.

    `start` returns a model and its new repair. Returns the model and the repair of the uninterrupted run, at its end. A
    second new repair must save the same bytes at step 0.

    From every saved state a new repair takes one step, and must then save the bytes that the uninterrupted repair saved
    after this step. From the third state it takes all further steps, because a wrong state in memory may show later.
    """
    model, repair = start()
    repair.save(folder / "0")
    while not repair.done:
        repair.advance()
        repair.save(folder / str(repair.step))
    last = repair.step
    repair.finish()
    assert_saves_the_same(start()[1], folder)
    for stop in range(last + 1):
        other, again = start()
        again.load(folder / str(stop))
        assert (again.step, again.done) == (stop, stop == last)
        end = last if stop == 3 else min(stop + 1, last)
        while again.step < end:
            again.advance()
            assert_saves_the_same(again, folder)
        if again.done:
            again.finish()
            assert same_bits(other.state_dict(), model.state_dict())
            assert (again.grown_zeros, again.kept_step) == (repair.grown_zeros, repair.kept_step)
    return model, repair


def assert_nonzeros_are_counted(repair: Repair) -> None:
    """Assert that the optimizer of each linear at `density: all` divides by the present numbers of nonzeros."""
    method: Any = repair._method
    for linear in getattr(method, "_method", method).linears.values():
        assert torch.equal(linear._moments.row_counts, linear.weight.count_nonzero(1))
        assert torch.equal(linear._moments.col_counts, linear.weight.count_nonzero(0))


def assert_saves_the_same(repair: Repair, folder: Path) -> None:
    """Assert that a repair saves the bytes that the uninterrupted one saved after the same step."""
    repair.save(folder / "again")
    for file in (folder / str(repair.step)).iterdir():
        assert file.read_bytes() == (folder / "again" / file.name).read_bytes(), (repair.step, file.name)


def sparse_linear(rows: int, cols: int, sparsity: float, seed: int = 0, **options: object) -> nn.Linear:
    """Return a random linear with about this sparsity."""
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(cols, rows, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        linear.weight.copy_(torch.randn(rows, cols, generator=generator))
        linear.weight[torch.rand(rows, cols, generator=generator) < sparsity] = 0
    return linear


def observe(repaired: RepairedLinear, count: int, generator: torch.Generator, batches: int = 2) -> Window:
    """Open a window and let it observe random micro-batches."""
    rows, cols = repaired.weight.shape
    dtype = repaired.weight.dtype
    window = repaired.open_window(count, 1)
    for _ in range(batches):
        left, right = (torch.randn(5, size, generator=generator).to(dtype) for size in (rows, cols))
        window.observe(left, right, repaired.active.indices)
    return window


def update(linear: RepairedLinear, gradient: Tensor, rate: float, weight_decay: float = 0.0) -> None:
    """Take one optimizer step in one linear alone."""
    FlatOptimizer([linear]).update([gradient], rate, weight_decay)


class Allocated(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the largest number of elements of a tensor that shares no memory with its inputs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        storages = {each.untyped_storage().data_ptr() for each in args if _is_dense(each)}
        result = func(*args, **(kwargs or {}))
        if _is_dense(result) and result.untyped_storage().data_ptr() not in storages:
            self.elements = max(self.elements, result.numel())
        return result


def _is_dense(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.layout is torch.strided
