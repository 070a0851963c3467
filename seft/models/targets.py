"""Finds the linear layers of a model that are pruned (the targets), by structure and not by architecture names.

Targets are the linear layers inside the decoder blocks: attention and MLP. A target is an `nn.Linear`, a `Conv1D`
(stored transposed), or one matrix of a parameter that stacks the matrices of all experts. Embeddings, head and norms
are outside the blocks or have no weight matrix. Routers, which choose experts, stay dense. Any other weight in a block
(a convolution, a single matrix) is rejected: if it stayed dense, the sparsity would be lower than requested. A weight
that two modules share is rejected too, because pruning one module would change the other.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from seft.errors import SourceError

Hidden = Float[Tensor, "batch tokens cols"]
"""Hidden state between two decoder blocks."""


class Split(Protocol):
    """A block whose parameters are split over several processes."""

    def gather(self) -> None:
        """Gather the whole parameters from all processes, if they are split now."""

    def store(self, module: nn.Module, key: str, number: int | None) -> None:
        """Keep a change of a parameter of a module, or of one matrix of it, made while the block computes."""


SPLIT: WeakKeyDictionary[nn.Module, Split] = WeakKeyDictionary()
"""Module with parameters that are split over several processes -> its block. `seft.repair.shards` splits them."""


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A linear layer that is pruned: parameter `key` of `module`, or matrix `number` of a stacked parameter.

    If `expert` is true, a router decides which tokens reach this linear, and possibly none do.
    """

    module: nn.Module
    key: str = "weight"
    number: int | None = None
    transposed: bool = False
    expert: bool = False

    @property
    def parameter(self) -> nn.Parameter:
        """Parameter that contains the weight matrix, and the matrices of other experts if it is a stack."""
        parameter: nn.Parameter = getattr(self.module, self.key)
        return parameter

    @property
    def weight(self) -> Float[Tensor, "rows cols"]:
        """Weight matrix with outputs as rows and inputs as columns. It shares memory with the parameter.

        If the parameter is split over processes, the matrix is whole until a target of another block is used.
        """
        if split := SPLIT.get(self.module):
            split.gather()
        stored = self.parameter.detach()
        matrix = stored if self.number is None else stored[self.number]
        return matrix.mT if self.transposed else matrix

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the weight matrix."""
        shape = self.parameter.shape[-2:]
        return (shape[1], shape[0]) if self.transposed else (shape[0], shape[1])

    def store(self) -> None:
        """Keep a change of the weight matrix. Call it after each change during a forward or backward pass."""
        if split := SPLIT.get(self.module):
            split.store(self.module, self.key, self.number)

    @property
    def bias(self) -> nn.Parameter | None:
        """Bias that the module's forward function adds. None for a matrix of a stack, to which other code adds it."""
        return getattr(self.module, "bias", None) if self.number is None else None


def hidden_state(output: Any) -> Hidden:
    """Return the hidden state in the output of a decoder block.

    It is the first item of a tuple, or of a list (GPT-1).
    """
    hidden: Tensor = output[0] if isinstance(output, tuple | list) else output
    return hidden


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """Return the decoder blocks: the outermost module list that has the most target weights.

    Raises SourceError if no list contains a target.
    """
    outermost = list(_outermost_lists(model))
    blocks = max(outermost, key=_target_weights, default=None)
    if blocks is None or not _target_weights(blocks):
        raise SourceError(
            "model_refused",
            f"a model must have decoder blocks with linear layers to prune; {type(model).__name__}"
            " has none. Choose a different model.",
        )
    _require_unshared_weights(blocks)
    return blocks


def target_linears(model: nn.Module) -> dict[str, Target]:
    """Return every target of a model by its full name, in the order of the model.

    A target has the name of its module. A matrix of a stack also has the parameter's name and the matrix's number.
    """
    blocks = decoder_blocks(model)
    prefix = next(name for name, module in model.named_modules() if module is blocks)
    return {
        f"{prefix}.{number}.{name}": target
        for number, block in enumerate(blocks)
        for name, target in block_linears(block).items()
    }


def block_linears(block: nn.Module) -> dict[str, Target]:
    """Return every target of one block by its name inside the block."""
    routers, experts = set[nn.Module](), set[nn.Module]()
    for mixture in block.modules():
        own_routers = set(_routers(mixture))
        if own_routers:
            experts |= {inner for child in mixture.children() if _stack_size(child) for inner in child.modules()}
        routers |= own_routers
    modules = {name: module for name, module in block.named_modules() if module not in routers}
    _require_only_linears(block, modules)
    return {
        name + suffix: target
        for name, module in modules.items()
        for suffix, target in _own_targets(module, expert=module in experts)
    }


def whole_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield every parameter of a model. A parameter that is split over processes is whole until the next is yielded."""
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        if split := SPLIT.get(module):
            split.gather()
        for parameter in module.parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                yield parameter


def norms_and_biases(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the vectors among the parameters of a model by name, without the bias of its head.

    These are the weights of norm layers and the biases, also the biases of stacked experts, which are stacked too. A
    few architectures have other vectors, such as attention sinks.
    """
    head = set(model.get_output_embeddings().parameters())  # type: ignore[operator]
    names = {
        parameter: f"{name}.{key}"
        for name, module in model.named_modules()
        for key, parameter in module.named_parameters(recurse=False)
        if (parameter.ndim == 1 or _is_stacked_bias(module, parameter)) and parameter not in head
    }
    return {name: parameter for parameter, name in names.items()}


def count_nonzeros(weights: Shaped[Tensor, "*shape"]) -> int:
    """Return the number of nonzeros. On a CPU this takes a tenth of the time of `Tensor.count_nonzero`."""
    size = 1 << 16 if weights.device.type == "cpu" else 1 << 24  # few at a time, to save memory
    return int(sum(part.bool().sum() for part in torch.split(weights.flatten(), size)))


def _is_stacked_bias(module: nn.Module, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and len(parameter) in {len(stack) for _, stack in _stacks(module)}


def _own_targets(module: nn.Module, *, expert: bool = False) -> Iterator[tuple[str, Target]]:
    """Yield the targets of a module without its children, each with the suffix to add to the module's name."""
    if isinstance(module, nn.Linear):
        yield "", Target(module, expert=expert)
    elif isinstance(module, Conv1D):
        yield "", Target(module, transposed=True, expert=expert)
    else:
        # In transformers, `is_transposed` means that experts are stored as (in, out).
        transposed = bool(getattr(module, "is_transposed", False))
        for key, parameter in _stacks(module):
            for number in range(len(parameter)):
                yield f".{key}.{number}", Target(module, key, number, transposed, expert=True)


def _stacks(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of a module that stack several weight matrices, with their names."""
    if not isinstance(module, _ConvNd):
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3 and min(parameter.shape) > 1:
                yield key, parameter


def _outermost_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _outermost_lists(child)


def _target_weights(module: nn.Module) -> int:
    return sum(math.prod(target.shape) for inner in module.modules() for _, target in _own_targets(inner))


def _routers(mixture: nn.Module) -> Iterator[nn.Module]:
    """Yield the routers of a mixture of experts: modules that choose experts, or weight the shared expert.

    A router is next to a stack of experts and has exactly one matrix. The number of its outputs is the number of
    experts, or one. A shared expert may have the same number of outputs, but it has more than one matrix. A bias may
    have two dimensions, too (ERNIE 4.5).
    """
    counts = {_stack_size(child) for child in mixture.children()} - {0}
    for child in mixture.children() if counts else ():
        parameters = child.named_parameters()
        matrices = [each for name, each in parameters if each.ndim >= 2 and not name.endswith("bias")]
        if not _stack_size(child) and len(matrices) == 1 and matrices[0].shape[0] in counts | {1}:
            yield from child.modules()


def _stack_size(module: nn.Module) -> int:
    """Return the number of modules in a list, or of matrices in a module's stacked parameters. 0 for other modules."""
    if isinstance(module, nn.ModuleList):
        return len(module)
    return max((len(parameter) for _, parameter in _stacks(module)), default=0)


def _require_unshared_weights(blocks: nn.ModuleList) -> None:
    names: dict[int, str] = {}
    for name, module in blocks.named_modules(remove_duplicate=False):
        for parameter in {id(target.parameter) for _, target in _own_targets(module)}:
            if (first := names.setdefault(parameter, name)) != name:
                raise SourceError(
                    "model_refused",
                    f"each linear layer of the blocks must have its own weight matrix; {first} and {name} share one."
                    " Choose a model without shared layers.",
                )


def _require_only_linears(block: nn.Module, modules: dict[str, nn.Module]) -> None:
    for name, module in modules.items():
        targets = {id(target.parameter) for _, target in _own_targets(module)}
        for key, parameter in module.named_parameters(recurse=False):
            known = id(parameter) in targets or _is_stacked_bias(module, parameter)
            if parameter.ndim >= 2 and not known:
                raise SourceError(
                    "model_refused",
                    f"each weight matrix of a block must belong to a linear layer; in {type(block).__name__},"
                    f" {name}.{key} of shape {tuple(parameter.shape)} does not. Choose a different model.",
                )
