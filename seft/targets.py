"""Which linear maps of a model are made sparse, found by structure and not by the names of architectures.

Targets are the linears inside the decoder blocks: attention and MLP. Embeddings, head and norms lie outside or are no
linears; the router of a mixture of experts is left whole. Weights that lie in no `nn.Linear` (experts fused into one
tensor, transposed convolutions) are refused, because leaving them dense would make the asked sparsity untrue; so is a
weight that two linears share, because each would take the other's changes for its own.
"""

from collections.abc import Iterator

from torch import nn

from seft.errors import SourceError


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The blocks that a hidden state passes one after another: the outermost list with the most linear weights."""
    outermost = list(_outermost_lists(model))
    blocks = max(outermost, key=_linear_weights, default=None)
    if blocks is None or not _linear_weights(blocks):
        raise SourceError("model_refused", f"{type(model).__name__} has no list of blocks with an nn.Linear to prune.")
    _refuse_shared_weights(blocks)
    return blocks


def target_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear to prune by its full name, in the model's order."""
    blocks = decoder_blocks(model)
    prefix = next(name for name, module in model.named_modules() if module is blocks)
    return {
        f"{prefix}.{number}.{name}": linear
        for number, block in enumerate(blocks)
        for name, linear in block_linears(block).items()
    }


def block_linears(block: nn.Module) -> dict[str, nn.Linear]:
    """The linears to prune of one block, by their name inside it."""
    routers = {id(router) for router in _routers(block)}
    kept = {name: module for name, module in block.named_modules() if id(module) not in routers}
    _refuse_other_weights(block, kept)
    return {name: module for name, module in kept.items() if isinstance(module, nn.Linear)}


def _outermost_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _outermost_lists(child)


def _linear_weights(module: nn.Module) -> int:
    return sum(inner.weight.numel() for inner in module.modules() if isinstance(inner, nn.Linear))


def _routers(block: nn.Module) -> Iterator[nn.Module]:
    """Modules without children beside a child called `experts`: they choose experts, or weigh the shared one."""
    for module in block.modules():
        children = dict(module.named_children())
        if "experts" in children:
            yield from (child for child in children.values() if not list(child.children()))


def _refuse_shared_weights(blocks: nn.ModuleList) -> None:
    names: dict[int, str] = {}
    for name, module in blocks.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear) and (first := names.setdefault(id(module.weight), name)) != name:
            raise SourceError(
                "model_refused",
                f"each linear of the blocks must have a weight of its own; {first} and {name} share one."
                " Choose a model without shared layers.",
            )


def _refuse_other_weights(block: nn.Module, kept: dict[str, nn.Module]) -> None:
    for name, module in kept.items():
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.ndim >= 2 and not isinstance(module, nn.Linear):
                raise SourceError(
                    "model_refused",
                    f"only weights of nn.Linear can be pruned; {type(block).__name__} has {name}.{key}"
                    f" of shape {tuple(parameter.shape)}. Choose a model without it.",
                )
