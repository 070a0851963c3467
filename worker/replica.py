"""The processes of a job on several devices, except the first. They take part in the training.

The first process (`worker.pipeline`) prunes the model, and then sends what the training starts from. It alone saves
states, decides when to stop, and evaluates before and after the training. All processes evaluate during the training,
and the loss of the first one counts. If the model is split over the processes, the others also help the first one
outside training (`seft.repair.shards`).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from seft import stages
from seft.config import PruneConfig, RepairConfig
from seft.data.packing import Packed
from seft.devices import configure_torch
from seft.models.load import Loaded, load
from seft.repair import Repair
from seft.repair.processes import broadcast, broadcast_weights
from seft.repair.shards import Shards
from seft.report import Reporter, silent
from worker.launch import device_of, dtype_of, find_model, threads_of
from worker.protocol import STATE, Task


@dataclass(frozen=True, slots=True)
class Start:
    """What the training of a job starts from, besides the weights of the pruned model."""

    training: Packed
    held_out: Packed
    retained: Packed | None
    prune: PruneConfig
    repair: RepairConfig
    step: int
    """Step of the saved state to resume from, or 0."""

    def open(self, loaded: Loaded, folder: Path, heartbeat: Reporter = silent) -> Repair:
        """Return the repair at `step`. `folder` is the folder of the job. `loaded` is the pruned model.

        `heartbeat` is called regularly during each held-out evaluation.
        """
        model: Any = loaded.model

        def load_teacher() -> Any:
            return load(loaded.source, device=str(model.device), dtype=model.dtype).model

        repair = stages.start_repair(
            loaded,
            self.training,
            self.repair,
            pruned=self.prune,
            load_teacher=load_teacher,
            retained=self.retained,
            held_out=self.held_out,
            heartbeat=heartbeat,
        )
        if self.step:
            repair.load(folder / STATE)
        return repair


class Next(NamedTuple):
    """What the first process has decided before or after a step."""

    stop: bool
    """The job must stop now."""
    end: bool
    """The training has ended early."""


def send_to_others(message: Start | Next | None, shards: Shards | None) -> None:
    """Tell the other processes of the job what to do next. None means that they have nothing more to do."""
    if shards:
        shards.send(message)
    else:
        broadcast(message)


def share_weights(model: Any, shards: Shards | None) -> None:
    """Copy the weights of the first process to all processes. All processes must call this."""
    if shards:
        shards.share()
    else:
        broadcast_weights(model)


def in_parallel(shards: Shards | None) -> AbstractContextManager[None]:
    """While the `with` block runs, all processes do the same. All must enter it."""
    return shards.in_parallel() if shards else nullcontext()


def take_part(folder: Path, task: Task) -> bool:
    """Take part in the training of the job whose files are in the folder. Return False if the job was stopped."""
    configure_torch(threads_of(task))
    device, source = device_of(task), find_model(task)
    shards = Shards(None, device) if task.spec.sharded else None
    receive: Callable[[], Any] = shards.receive if shards else partial(broadcast, None)
    start: Start | None = receive()
    if start is None:
        return True
    loaded = Loaded(shards.model, None, source) if shards else load(source, device=device, dtype=dtype_of(task))
    share_weights(loaded.model, shards)
    with in_parallel(shards):
        repair = start.open(loaded, folder)
    now: Next = receive()
    while not (repair.done or now.stop or now.end):
        with in_parallel(shards):
            repair.advance()
        now = receive()
    if shards and not now.stop:
        shards.receive()
    return not now.stop
