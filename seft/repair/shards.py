"""Splits the decoder blocks of a model over several processes, so that the model need not fit one device (FSDP2).

Each process keeps a part of every parameter of a block, such as some rows of a weight matrix (`fully_shard` of torch,
Zhao et al. 2023, arXiv 2304.11277). The processes gather one block while it computes, and free it afterwards.
Embeddings, head, norms and biases are whole in every process.

Before and after training the first process works alone: it evaluates and prunes. The other processes only help to
gather blocks, and receive the changes of the first process. In training all processes do the same, each on its part of
a batch.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from seft.models.targets import SPLIT, decoder_blocks, norms_and_biases
from seft.repair.processes import broadcast, process_count

_Name = Literal["gather", "store", "free", "run"]


class _Command(NamedTuple):
    """A command of the first process to the others: what they all must do with a block or one of its parameters."""

    name: _Name
    block: int
    parameter: int


class _Part:
    """The part of a parameter that this process keeps: some entries of its first dimension."""

    def __init__(self, module: nn.Module, key: str) -> None:
        self._module, self._key = module, key
        self._kept: DTensor = getattr(module, key)
        size = len(self._kept)
        self._start = min(size, dist.get_rank() * math.ceil(size / process_count()))

    @property
    def split(self) -> bool:
        """Whether the parameter is split now."""
        return isinstance(getattr(self._module, self._key), DTensor)

    @property
    def whole(self) -> Tensor:
        """The whole parameter. Its block must be gathered."""
        parameter: nn.Parameter = getattr(self._module, self._key)
        return parameter.detach()

    @torch.no_grad()
    def store(self, number: int | None = None) -> None:
        """Copy what this process keeps from the whole parameter: all, or only entry `number` of the first dimension."""
        kept = self._kept.to_local()
        now = self.whole[self._start : self._start + len(kept)]
        if number is None:
            kept.copy_(now)
        elif self._start <= number < self._start + len(kept):
            kept[number - self._start] = now[number - self._start]

    def exchange(self) -> None:
        """Replace the whole parameter by the one of the first process. Keep this process's part of it."""
        dist.broadcast(self.whole, src=0)
        self.store()


class _Block:
    """A decoder block whose parameters are split."""

    def __init__(self, shards: "Shards", number: int, module: FSDPModule) -> None:
        assert isinstance(module, nn.Module)
        self._shards, self.number, self.module = shards, number, module
        self._parts = {
            (inner, key): _Part(inner, key)
            for inner in module.modules()
            for key, parameter in inner.named_parameters(recurse=False)
            if isinstance(parameter, DTensor)
        }
        for inner, _ in self._parts:
            SPLIT[inner] = self

    @property
    def parts(self) -> list[_Part]:
        """The parts of all parameters that are split."""
        return list(self._parts.values())

    @property
    def versions(self) -> list[int]:
        """Numbers that change with the parameters. The block must be gathered."""
        return [part.whole._version for part in self.parts]

    def forget(self) -> None:
        """Stop gathering the block when one of its parameters is used."""
        for module, _ in self._parts:
            SPLIT.pop(module, None)

    def gather(self) -> None:
        """Gather the block, unless it is gathered already."""
        if self.parts[0].split:
            self._shards.gather(self)

    def store(self, module: nn.Module, key: str, number: int | None) -> None:
        """Keep a change of a parameter that was made while the block computes."""
        if self._shards.held is not self:
            self._parts[module, key].store(number)


class Shards:
    """A model whose decoder blocks are split over all processes. `model` runs as before, in all of them together.

    The first process has the whole model on any device. Its parameters are freed one after another, while all processes
    receive their parts. The other processes give None. `device` is the device of this process.

    Using a parameter of a target gathers its block. The block stays gathered until another block is used. So all
    processes must use the same targets in the same order, except while the other processes are in `receive`.
    """

    def __init__(self, model: Any | None, device: str) -> None:
        self._leads, self._device = model is not None, torch.device(device)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # FSDP2 uses the current device
        self._empty: Any = broadcast(_without_weights(model) if model is not None else None)
        self.model: Any = self._empty if model is None else model
        self.held: _Block | None = None
        """The block that is gathered because its parameters are used, and not because it computes."""
        self._versions: list[int] = []
        self._running: _Block | None = None
        blocks, vectors = decoder_blocks(self.model), list(norms_and_biases(self.model))
        inside = set(blocks.modules())
        self._place([module for module in self.model.modules() if module not in inside])
        mesh = init_device_mesh(self._device.type, (process_count(),))
        self._blocks: list[_Block] = []
        for number, block in enumerate(blocks):
            self._place(list(block.modules()))
            whole = {self.model.get_parameter(name) for name in vectors}
            module = fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
            block.register_forward_pre_hook(partial(self._before_forward, number), prepend=True)
            self._blocks.append(_Block(self, number, module))

    @contextmanager
    def in_parallel(self) -> Iterator[None]:
        """Let all processes do the same while the `with` block runs. All must enter it, the first one after `send`."""
        leads, self._leads = self._leads, False
        try:
            yield
            self.free()
        finally:
            self._leads = leads

    def send(self, message: object) -> None:
        """End `receive` in the other processes, which return the message."""
        self.free()
        broadcast(message)

    def receive(self) -> Any:
        """Work with the first process until it calls `send`. Return its message."""
        while isinstance(message := broadcast(None), _Command):
            block = self._blocks[message.block]
            match message.name:
                case "gather":
                    block.module.unshard()
                case "store":
                    block.parts[message.parameter].exchange()
                case "free":
                    block.module.reshard()
                case "run":
                    block.module.unshard()
                    block.module.reshard()
        return message

    def share(self) -> None:
        """Replace the parameters that are not split by the ones of the first process. All processes must call this."""
        for parameter in self.model.parameters():
            if not isinstance(parameter, DTensor):
                dist.broadcast(parameter.detach(), src=0)

    def gather(self, block: _Block) -> None:
        """Gather a block, and free the block that was gathered before."""
        self.free()
        self._tell("gather", block)
        block.module.unshard()
        self.held, self._versions = block, block.versions

    def free(self) -> None:
        """Keep the changes of the gathered block, and free it."""
        running, self._running = self._running, None
        if running:
            running.module.reshard()  # if an exception has ended its forward pass
        block, self.held = self.held, None
        if block is None:
            return
        if block.parts[0].split:
            raise RuntimeError("a block must stay gathered until its changes are kept; other code has freed it")
        for number, (part, before) in enumerate(zip(block.parts, self._versions, strict=True)):
            if part.whole._version == before:
                continue
            if self._leads:
                self._tell("store", block, number)
                part.exchange()
            else:
                part.store()
        self._tell("free", block)
        block.module.reshard()

    def collect(self) -> Any:
        """Return the whole model in host memory. The first process calls it while the others are in `receive`."""
        filled: dict[nn.Parameter, nn.Parameter] = {}
        for name, module in self._empty.named_modules():
            own = self.model.get_submodule(name)
            for key, parameter in module.named_parameters(recurse=False):
                if parameter not in filled:
                    if own in SPLIT:
                        SPLIT[own].gather()
                    filled[parameter] = nn.Parameter(getattr(own, key).detach().to("cpu", copy=True))
                setattr(module, key, filled[parameter])
        self.free()
        for block in self._blocks:
            block.forget()
        return self._empty

    def _before_forward(self, number: int, *_: Any) -> None:
        self.free()
        self._running = self._blocks[number]
        self._tell("run", self._running)

    def _tell(self, name: _Name, block: _Block, parameter: int = 0) -> None:
        if self._leads:
            broadcast(_Command(name, block.number, parameter))

    def _place(self, modules: Sequence[nn.Module]) -> None:
        """Move the parameters and buffers of modules to the device. Parameters get the values of the first process."""
        placed: dict[nn.Parameter, nn.Parameter] = {}
        for module in modules:
            for key, parameter in module.named_parameters(recurse=False):
                if parameter not in placed:
                    value = parameter.detach()
                    value = value.to(self._device).contiguous() if self._leads else self._empty_like(value)
                    dist.broadcast(value, src=0)
                    placed[parameter] = nn.Parameter(value, requires_grad=False)
                setattr(module, key, placed[parameter])
            for key, buffer in module.named_buffers(recurse=False):
                setattr(module, key, buffer.to(self._device))

    def _empty_like(self, tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=self._device, memory_format=torch.contiguous_format)


def _without_weights(model: Any) -> Any:
    """Return a copy of a model whose parameters have shapes and no values."""
    memo: dict[int, Any] = {
        id(each): nn.Parameter(torch.empty_like(each, device="meta"), requires_grad=False)
        for each in model.parameters()
    }
    return copy.deepcopy(model, memo)
