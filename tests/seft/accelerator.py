"""An accelerator with a memory of its own, of so many bytes, for machines that have none.

Under the mode, whatever is sent to `DEVICE` or made there is a tensor that says it is there; its entries lie in host
memory, where the processor computes with them. What comes of tensors there is there too, and an operation on tensors
of both places is an error, as on a real accelerator. `DEVICE` borrows the name of torch's device without storage, the
only other one that a plain build of torch lets tensors be on.

Counted is every storage there that is still referenced, to the byte: weights, activations, statistics, and the result
of every operation, for as long as Python or a module holds it. Not counted is what one operation needs inside itself.
"""

import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = "meta"


class FullError(RuntimeError):
    """The accelerator has less memory than is asked for."""


class Remote(Tensor):
    """A tensor on the accelerator; `held` has its entries."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> "Remote":
        made: Remote = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=int(held.storage_offset()),
            dtype=held.dtype,
            device=torch.device(DEVICE),
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        raise RuntimeError(f"{func} came after its accelerator was switched off")


class Accelerator(TorchDispatchMode):
    """It is there while its context lasts; FullError where it would have to hold more than `limit` bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limit, self.used, self.peak = limit, 0, 0
        self._references = Counter[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [each for value in (*args, *kwargs.values()) for each in _parts(value) if isinstance(each, Tensor)]
        remote = {id(each.held): each for each in tensors if isinstance(each, Remote)}
        stays_there = bool(remote)
        if kwargs.get("device") is not None:
            stays_there = torch.device(kwargs["device"]).type == DEVICE
            kwargs["device"] = torch.device("cpu")
        elif func is torch.ops.aten.copy_.default:
            stays_there = isinstance(args[0], Remote)
        elif remote and any(each.dim() for each in tensors if not isinstance(each, Remote)):
            raise RuntimeError(f"{func} must have all its tensors in one place")
        result = func(*_each(args, _held), **{name: _each(value, _held) for name, value in kwargs.items()})
        return (
            _each(result, lambda tensor: remote[id(tensor)] if id(tensor) in remote else self._keep(tensor))
            if stays_there
            else result
        )

    def _keep(self, held: Tensor) -> Remote:
        made, storage = Remote(held), held.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        self.used += 0 if self._references[place] else size
        self._references[place] += 1
        self.peak = max(self.peak, self.used)
        weakref.finalize(made, self._forget, place, size)
        if self.used > self.limit:
            raise FullError(f"{self.used} bytes would be used of {self.limit}")
        return made

    def _forget(self, place: int, size: int) -> None:
        self._references[place] -= 1
        self.used -= 0 if self._references[place] else size


def _parts(value: Any) -> Any:
    return value if isinstance(value, tuple | list) else (value,)


def _each(value: Any, change: Any) -> Any:
    """Change every tensor of an argument or a result, in lists too."""
    if isinstance(value, tuple | list):
        return type(value)(_each(inner, change) for inner in value)
    return change(value) if isinstance(value, Tensor) else value


def _held(tensor: Tensor) -> Tensor:
    return tensor.held if isinstance(tensor, Remote) else tensor
