"""A simulated accelerator with limited memory, for machines without one.

Inside the mode, a tensor that is created on `DEVICE` or moved to it reports that device. Its entries are in host
memory, where the CPU computes with them. Results of device tensors are on the device too, and an operation that mixes
both devices is an error, as on a real accelerator. `DEVICE` reuses the name of torch's device without storage, the only
other device that a plain build of torch supports.

The mode counts every referenced storage on the device, to the byte: weights, activations, statistics and results of
operations, as long as Python or a module holds them. Memory used inside one operation is not counted.

The mode also counts the operations at which the host waits for a real accelerator. They read an entry, or their result
has a shape that depends on entries.
"""

import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = "meta"


_aten = torch.ops.aten
WAITS = {
    _aten._local_scalar_dense.default,
    _aten.is_nonzero.default,
    _aten.equal.default,
    _aten.nonzero.default,
    _aten.masked_select.default,
}
"""Operations at which the host waits, apart from copies to the host and from indexing by a mask."""


class FullError(RuntimeError):
    """The accelerator has less memory than requested."""


class Remote(Tensor):
    """A tensor on the accelerator. `host_tensor` has its entries."""

    host_tensor: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, host_tensor: Tensor) -> "Remote":
        remote: Remote = Tensor._make_wrapper_subclass(
            cls,
            host_tensor.shape,
            strides=host_tensor.stride(),
            storage_offset=int(host_tensor.storage_offset()),
            dtype=host_tensor.dtype,
            device=torch.device(DEVICE),
        )
        remote.host_tensor = host_tensor
        return remote

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        raise RuntimeError(f"{func} was called outside the accelerator mode")


class Accelerator(TorchDispatchMode):
    """Accelerator that exists inside its context. Raises FullError if more than `limit` bytes would be used."""

    def __init__(self, limit: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limit, self.used, self.peak, self.waits = limit, 0, 0, 0
        self._references = Counter[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [each for value in (*args, *kwargs.values()) for each in _parts(value) if isinstance(each, Tensor)]
        remote = {id(each.host_tensor): each for each in tensors if isinstance(each, Remote)}
        on_device = bool(remote)
        if kwargs.get("device") is not None:
            on_device = torch.device(kwargs["device"]).type == DEVICE
            kwargs["device"] = torch.device("cpu")
        elif func is torch.ops.aten.copy_.default:
            on_device = isinstance(args[0], Remote)
        elif remote and any(each.dim() for each in tensors if not isinstance(each, Remote)):
            raise RuntimeError(f"{func} must have all its tensors in one place")
        self.waits += bool(remote) and _waits(func, args, on_device)
        result = func(*_each(args, _to_host), **{name: _each(value, _to_host) for name, value in kwargs.items()})
        return (
            _each(result, lambda tensor: remote[id(tensor)] if id(tensor) in remote else self._keep(tensor))
            if on_device
            else result
        )

    def _keep(self, host_tensor: Tensor) -> Remote:
        remote, storage = Remote(host_tensor), host_tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        self.used += 0 if self._references[address] else size
        self._references[address] += 1
        self.peak = max(self.peak, self.used)
        weakref.finalize(remote, self._forget, address, size)
        if self.used > self.limit:
            raise FullError(f"{self.used} bytes would be used of {self.limit}")
        return remote

    def _forget(self, address: int, size: int) -> None:
        self._references[address] -= 1
        self.used -= 0 if self._references[address] else size


def _waits(func: Any, args: Any, on_device: bool) -> bool:
    """Return whether the host waits for the device in this operation with tensors on the device."""
    if func in {_aten.index.Tensor, _aten.index_put_.default}:
        return any(isinstance(each, Tensor) and each.dtype == torch.bool for each in args[1])
    return func in WAITS or not on_device


def _parts(value: Any) -> Any:
    return value if isinstance(value, tuple | list) else (value,)


def _each(value: Any, change: Any) -> Any:
    """Apply `change` to every tensor of an argument or a result, also inside lists."""
    if isinstance(value, tuple | list):
        return type(value)(_each(inner, change) for inner in value)
    return change(value) if isinstance(value, Tensor) else value


def _to_host(tensor: Tensor) -> Tensor:
    return tensor.host_tensor if isinstance(tensor, Remote) else tensor
