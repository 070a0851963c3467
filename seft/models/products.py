"""Replaces the forward computation of targets by handlers, which observe the inputs or train the weights.

A target is a linear layer that is pruned. If a module has one weight matrix, its `forward` is replaced. Experts whose
matrices are stacked in one parameter have no `forward` of their own. Their module's code runs one expert after another,
and each product with a matrix of the stack is recognised by the memory address of the matrix. Any other use of that
memory raises an error, so that no product is missed silently. Module and parameter names are not used.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from seft.errors import SourceError
from seft.models.targets import Target

Inputs = Float[Tensor, "*batch cols"]
Outputs = Float[Tensor, "*batch rows"]
Product = Callable[[Inputs], Outputs]
"""Forward function of a target: returns its outputs for some inputs, including the bias."""

Handler = Callable[[Inputs, Product], Outputs]
"""Function that is called instead of a target's forward function. Gets the inputs and the original forward function."""

_MATMULS = (torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__)


def intercept_products(handlers: Mapping[Target, Handler]) -> Callable[[], None]:
    """Call the handlers instead of the forward functions of their targets.

    Returns a function that restores the original forward functions.
    """
    modules: dict[nn.Module, dict[Target, Handler]] = {}
    for target, handler in handlers.items():
        modules.setdefault(target.module, {})[target] = handler
    return replace_forwards(
        {module: _intercepted_forward(module, module.forward, own) for module, own in modules.items()}
    )


def replace_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Callable[[], None]:
    """Replace the forward functions of modules. Returns a function that restores the original ones."""
    originals = {module: vars(module).get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.forward = forward

    def restore() -> None:
        for module, forward in originals.items():
            if forward is None:
                del module.forward
            else:
                module.forward = forward

    return restore


@contextmanager
def intercepted_products(handlers: Mapping[Target, Handler]) -> Iterator[None]:
    """Call the handlers instead of the targets' forward functions while the `with` block runs."""
    restore = intercept_products(handlers)
    try:
        yield
    finally:
        restore()


def _intercepted_forward(module: nn.Module, forward: Callable[..., Any], handlers: Mapping[Target, Handler]) -> Any:
    if all(target.number is None for target in handlers):
        (handler,) = handlers.values()
        return lambda inputs: handler(inputs, forward)

    def run(*args: Any, **kwargs: Any) -> Any:
        with _eager_experts(module), _Products(module, handlers):
            return forward(*args, **kwargs)

    return run


@contextmanager
def _eager_experts(module: nn.Module) -> Iterator[None]:
    """Make a module run its experts one after another while the `with` block runs, not in one fused kernel."""
    config = getattr(module, "config", None)
    kernel = getattr(config, "_experts_implementation", None)
    if config is None or kernel is None:
        yield
        return
    config._experts_implementation = "eager"
    try:
        yield
    finally:
        config._experts_implementation = kernel


class _Products(TorchFunctionMode):
    """Torch function mode that passes each product with a matrix of a stacked parameter to that matrix's handler."""

    def __init__(self, module: nn.Module, handlers: Mapping[Target, Handler]) -> None:
        super().__init__()
        self._name = type(module).__name__
        self._handlers = {_key(target.weight): handler for target, handler in handlers.items()}
        stacks = {id(target.parameter): target.parameter.detach() for target in handlers}.values()
        self._memory = [(stack.data_ptr(), stack.data_ptr() + stack.nbytes) for stack in stacks]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        handler = self._handler(func, args)
        if handler is not None:
            return handler(args[0], lambda inputs: func(inputs, *args[1:], **kwargs))
        result = func(*args, **kwargs)
        used = any(isinstance(value, Tensor) and self._is_stacked(value) for value in (*args, *kwargs.values()))
        if used and isinstance(result, Tensor) and not self._is_stacked(result):
            raise SourceError(
                "model_refused",
                f"a matrix product of an expert layer must use the weights of one expert; {self._name} combines several"
                f" in {getattr(func, '__name__', func)}."
                " Choose a different model.",
            )
        return result

    def _handler(self, func: Any, args: tuple[Any, ...]) -> Handler | None:
        if len(args) > 1 and func is F.linear:
            return self._handlers.get(_key(args[1]))
        if len(args) > 1 and func in _MATMULS and args[1].ndim == 2:
            return self._handlers.get(_key(args[1].mT))
        return None

    def _is_stacked(self, tensor: Tensor) -> bool:
        return any(start <= tensor.data_ptr() < end for start, end in self._memory)


def _key(matrix: Float[Tensor, "rows cols"]) -> tuple[int, torch.Size, tuple[int, ...]]:
    """Return the address and layout of a matrix. They are the same for two views of the same matrix."""
    return matrix.data_ptr(), matrix.shape, matrix.stride()
