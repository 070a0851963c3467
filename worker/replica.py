"""The processes of a job on several devices, other than the first: they take part in the training and do nothing else.

The first process (`worker.pipeline`) prunes the model meanwhile, and then sends what the training starts from. It alone
evaluates, saves states, and decides when to stop.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seft import stages
from seft.config import PruneConfig, RepairConfig
from seft.data.packing import Packed
from seft.devices import configure_torch
from seft.models.load import Loaded, load
from seft.repair import Repair
from seft.repair.processes import broadcast, broadcast_weights
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

    def open(self, loaded: Loaded, folder: Path, alive: Reporter = silent) -> Repair:
        """Return the repair at this step. `folder` is that of the job. `loaded` is the pruned model.

        `alive` is called regularly during each held-out evaluation.
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
            alive=alive,
        )
        if self.step:
            repair.load(folder / STATE)
        return repair


def share(start: Start, loaded: Loaded) -> None:
    """Send to the other processes of the job what the training starts from. Does nothing if there are none."""
    broadcast(start)
    broadcast_weights(loaded.model)


def decide(*, stop: bool, end: bool) -> tuple[bool, bool]:
    """Return what the first process has decided before or after a step, in every process.

    `stop` is true if the job must stop now, and `end` if its training has ended early.
    """
    decided: tuple[bool, bool] = broadcast((stop, end))
    return decided


def follow(folder: Path, task: Task) -> bool:
    """Take part in the training of the job whose files are in the folder. Return whether it has ended, not stopped."""
    configure_torch(threads_of(task))
    start: Start = broadcast(None)
    loaded = load(find_model(task), device=device_of(task), dtype=dtype_of(task))
    broadcast_weights(loaded.model)
    repair = start.open(loaded, folder)
    stop, end = decide(stop=False, end=False)
    while not (repair.done or stop or end):
        repair.advance()
        stop, end = decide(stop=False, end=False)
    return not stop
