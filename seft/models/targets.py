"""Which matrices of a model are made sparse, found by structure and not by the names of architectures.

Targets are the linear maps inside the decoder blocks: attention and MLP, in whichever way a module stores them. A map
may be an `nn.Linear`, a `Conv1D` (stored transposed), or one matrix of a parameter that stacks those of all experts.
Embeddings, head and norms lie outside or are no matrices; what chooses experts is left whole. A weight that is none
of these (a convolution, a lone matrix) is refused, because leaving it dense would make the asked sparsity untrue; so is
one that two modules share, because each would take the other's changes for its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from seft.errors import SourceError


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """One matrix to prune: parameter `key` of `module`, or its matrix at place `number` where it stacks several.

    `expert` tells that a router decides which tokens come here, so that it may see none.
    """

    module: nn.Module
    key: str = "weight"
    number: int | None = None
    transposed: bool = False
    expert: bool = False

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that holds the matrix, alone or with others."""
        parameter: nn.Parameter = getattr(self.module, self.key)
        return parameter

    @property
    def weight(self) -> Float[Tensor, "rows cols"]:
        """The matrix with outputs as rows and inputs as columns; it shares the memory of the parameter."""
        stored = self.parameter.detach()
        matrix = stored if self.number is None else stored[self.number]
        return matrix.mT if self.transposed else matrix


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The blocks that a hidden state passes one after another: the outermost list with the most target weights."""
    outermost = list(_outermost_lists(model))
    blocks = max(outermost, key=_target_weights, default=None)
    if blocks is None or not _target_weights(blocks):
        raise SourceError("model_refused", f"{type(model).__name__} has no list of blocks with a linear map to prune.")
    _refuse_shared_weights(blocks)
    return blocks


def target_linears(model: nn.Module) -> dict[str, Target]:
    """Every matrix to prune by its full name, in the model's order.

    The name is that of the module; a matrix out of a stack adds the parameter's name and its number.
    """
    blocks = decoder_blocks(model)
    prefix = next(name for name, module in model.named_modules() if module is blocks)
    return {
        f"{prefix}.{number}.{name}": target
        for number, block in enumerate(blocks)
        for name, target in block_linears(block).items()
    }


def block_linears(block: nn.Module) -> dict[str, Target]:
    """The matrices to prune of one block, by their name inside it."""
    routers, experts = set[nn.Module](), set[nn.Module]()
    for mixture in block.modules():
        of_mixture = set(_routers(mixture))
        if of_mixture:
            experts |= {inner for child in mixture.children() if _stacked(child) for inner in child.modules()}
        routers |= of_mixture
    kept = {name: module for name, module in block.named_modules() if module not in routers}
    _refuse_other_weights(block, kept)
    return {
        name + suffix: target
        for name, module in kept.items()
        for suffix, target in _own_targets(module, expert=module in experts)
    }


def _own_targets(module: nn.Module, *, expert: bool = False) -> Iterator[tuple[str, Target]]:
    """The matrices that lie in a module itself, each with what comes after the module's name."""
    if isinstance(module, nn.Linear):
        yield "", Target(module, expert=expert)
    elif isinstance(module, Conv1D):
        yield "", Target(module, transposed=True, expert=expert)
    else:
        # Experts are stored (in, out) where transformers' interface of experts says so.
        transposed = bool(getattr(module, "is_transposed", False))
        for key, parameter in _stacks(module):
            for number in range(len(parameter)):
                yield f".{key}.{number}", Target(module, key, number, transposed, expert=True)


def _stacks(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of a module that are matrices laid one upon the other."""
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
    return sum(target.weight.numel() for inner in module.modules() for _, target in _own_targets(inner))


def _routers(mixture: nn.Module) -> Iterator[nn.Module]:
    """Modules that choose experts or weigh a shared one: beside stacked things, one matrix to as many outputs, or one.

    Not the names tell, nor the outputs alone: a shared expert may be as wide as there are experts, but has more than
    one matrix.
    """
    counts = {_stacked(child) for child in mixture.children()} - {0}
    for child in mixture.children() if counts else ():
        matrices = [parameter for parameter in child.parameters() if parameter.ndim >= 2]
        if not _stacked(child) and len(matrices) == 1 and matrices[0].shape[0] in counts | {1}:
            yield from child.modules()


def _stacked(module: nn.Module) -> int:
    """How many equal things a module holds, as a list or in stacked parameters; none where it is no such module."""
    if isinstance(module, nn.ModuleList):
        return len(module)
    return max((len(parameter) for _, parameter in _stacks(module)), default=0)


def _refuse_shared_weights(blocks: nn.ModuleList) -> None:
    names: dict[int, str] = {}
    for name, module in blocks.named_modules(remove_duplicate=False):
        for parameter in {id(target.parameter) for _, target in _own_targets(module)}:
            if (first := names.setdefault(parameter, name)) != name:
                raise SourceError(
                    "model_refused",
                    f"each linear of the blocks must have a weight of its own; {first} and {name} share one."
                    " Choose a model without shared layers.",
                )


def _refuse_other_weights(block: nn.Module, kept: dict[str, nn.Module]) -> None:
    for name, module in kept.items():
        experts = {len(parameter) for _, parameter in _stacks(module)}
        known = {id(target.parameter) for _, target in _own_targets(module)}
        for key, parameter in module.named_parameters(recurse=False):
            bias_of_stack = parameter.ndim == 2 and len(parameter) in experts
            if parameter.ndim >= 2 and id(parameter) not in known and not bias_of_stack:
                raise SourceError(
                    "model_refused",
                    f"only linear maps can be pruned; {type(block).__name__} has {name}.{key}"
                    f" of shape {tuple(parameter.shape)}. Choose a model without it.",
                )
