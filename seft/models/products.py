"""The products of targets with their inputs, taken over: what looks at them or trains them stands in their place.

A module with one matrix has its forward taken over. Experts whose matrices lie in one parameter have no forward each:
there the module's own code runs, one expert after the other, while every product with a matrix of the parameter is
recognised by the memory that the matrix lies in. A use of that memory which is no such product is refused, so that
nothing is missed in silence. Names play no part.
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
"""What a target makes of its inputs, bias included."""

Handler = Callable[[Inputs, Product], Outputs]
"""Called in place of a target's product, with its inputs and with the product itself."""

_MATMULS = (torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__)


def take_over(handlers: Mapping[Target, Handler]) -> Callable[[], None]:
    """Let handlers stand in for the products of their targets until the function that is returned is called."""
    modules: dict[nn.Module, dict[Target, Handler]] = {}
    for target, handler in handlers.items():
        modules.setdefault(target.module, {})[target] = handler
    before = {module: vars(module).get("forward") for module in modules}
    for module, own in modules.items():
        module.forward = _stand_in(module, module.forward, own)

    def release() -> None:
        for module, forward in before.items():
            if forward is None:
                del module.forward
            else:
                module.forward = forward

    return release


@contextmanager
def taken_over(handlers: Mapping[Target, Handler]) -> Iterator[None]:
    """`take_over` for the time inside."""
    release = take_over(handlers)
    try:
        yield
    finally:
        release()


def _stand_in(module: nn.Module, forward: Callable[..., Any], handlers: Mapping[Target, Handler]) -> Any:
    if all(target.number is None for target in handlers):
        (handler,) = handlers.values()
        return lambda inputs: handler(inputs, forward)

    def run(*args: Any, **kwargs: Any) -> Any:
        with _one_by_one(module), _Products(module, handlers):
            return forward(*args, **kwargs)

    return run


@contextmanager
def _one_by_one(module: nn.Module) -> Iterator[None]:
    """Inside, experts run by their module's own loop and not by one of transformers' kernels for all at once."""
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
    """Hands products with matrices of a module's stacked parameters to their handlers."""

    def __init__(self, module: nn.Module, handlers: Mapping[Target, Handler]) -> None:
        super().__init__()
        self._name = type(module).__name__
        self._handlers = {_place(target.weight): handler for target, handler in handlers.items()}
        stacks = {id(target.parameter): target.parameter.detach() for target in handlers}.values()
        self._memory = [(stack.data_ptr(), stack.data_ptr() + stack.nbytes) for stack in stacks]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        handler = self._handler(func, args)
        if handler is not None:
            return handler(args[0], lambda inputs: func(inputs, *args[1:], **kwargs))
        result = func(*args, **kwargs)
        used = any(isinstance(value, Tensor) and self._is_ours(value) for value in (*args, *kwargs.values()))
        if used and isinstance(result, Tensor) and not self._is_ours(result):
            raise SourceError(
                "model_refused",
                f"experts must use their weights in products with one of them; {self._name} uses"
                f" {getattr(func, '__name__', func)}. Choose another model.",
            )
        return result

    def _handler(self, func: Any, args: tuple[Any, ...]) -> Handler | None:
        if len(args) > 1 and func is F.linear:
            return self._handlers.get(_place(args[1]))
        if len(args) > 1 and func in _MATMULS and args[1].ndim == 2:
            return self._handlers.get(_place(args[1].mT))
        return None

    def _is_ours(self, tensor: Tensor) -> bool:
        return any(start <= tensor.data_ptr() < end for start, end in self._memory)


def _place(matrix: Float[Tensor, "rows cols"]) -> tuple[int, torch.Size, tuple[int, ...]]:
    """Where a matrix lies and how, the same for all views that are equal."""
    return matrix.data_ptr(), matrix.shape, matrix.stride()
