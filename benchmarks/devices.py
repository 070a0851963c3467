"""How fast are two processes, and what do they send? Seconds, bytes and topology of a repair, beside one process.

    python -m benchmarks.devices --model GGUF --data wikitext2_valid.txt --out devices.json

All sides train on the same batches of 2 windows and use two threads of the CPU: one process with two threads, or two
processes with one thread each, connected by gloo. So on one machine two processes cannot be much faster. With
`sharded`, they split the model. The table shows the seconds of a step, the bytes that each process sends in a step, and
which part of the trained positions is the same as with one process. The sides take their steps in turn, so that a noisy
machine slows all. The peak memory is measured in the first process, from the creation of its repair to the saved state.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from benchmarks.arguments import float_dtype, output_file, positive
from benchmarks.turns import answer, forget_peak, peak_bytes, take_turns
from seft.config import PruneConfig, PruneMethod, RepairConfig
from seft.data.records import read
from seft.data.text import tokenize
from seft.devices import trim_memory
from seft.float32_products import use_float32_products
from seft.models.load import load, load_tokenizer
from seft.models.source import find
from seft.prune.loop import prune_model
from seft.repair import Repair
from seft.repair.processes import broadcast
from seft.repair.schedule import WINDOW, next_event
from seft.repair.shards import Shards
from worker.launch import launch, process_group, rank
from worker.replica import in_parallel

WARM_UP = 2
EVENTS_EVERY = 10
"""Steps between two topology events of the method `seft`."""
KINDS = ("outside windows", "in windows")
DENSITIES: dict[str, float | str] = {"seft": 0.005, "all": "all"}
SIDES = {"1": (1, False), "2": (2, False), "2 sharded": (2, True)}
"""Number of processes, and whether they split the model."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a side measures."""

    method: str
    processes: int
    sharded: bool
    steps: int
    length: int
    model: str
    data: Path
    dtype: torch.dtype
    state: Path
    """Folder for the state after the last step."""

    def config(self) -> RepairConfig:
        """Return the settings of the repair."""
        density: Any = DENSITIES[self.method]
        batch: dict[str, Any] = {"sequence_tokens": self.length, "batch_tokens": 2 * self.length, "micro_batch": 2}
        return RepairConfig(10 * self.steps, density=density, update_interval=EVENTS_EVERY, **batch)


def main() -> None:
    """Measure all sides in turn for each method, and write the results as JSON."""
    arguments = _arguments()
    runs = []
    print("| method | steps | processes | seconds | bytes sent | peak MB | same positions |\n|--|--|--|--|--|--|--|")
    for method in arguments.methods:
        with tempfile.TemporaryDirectory() as folder:
            common = (arguments.steps, arguments.length, arguments.model, arguments.data, arguments.dtype)
            settings = {name: Setting(method, *side, *common, Path(folder) / name) for name, side in SIDES.items()}
            sides = {name: (setting,) for name, setting in settings.items()}
            results, peaks = take_turns(_serve, sides, arguments.steps)
            same = {name: _same_positions(settings["1"].state, each.state) for name, each in settings.items()}
        config, numbers = settings["1"].config(), range(WARM_UP + 1, arguments.steps + 1)
        kinds = {kind: [step for step in numbers if _kind(config, step) == kind] for kind in KINDS}
        for (kind, chosen), name in itertools.product(kinds.items(), results):
            if chosen:
                used = [results[name][step - 1] for step in chosen]
                seconds, sent = (statistics.median(values) for values in zip(*used, strict=True))
                columns = (seconds, sent, peaks[name] / 1e6, same[name])
                print(f"| {method} | {kind} | {name} | " + "{:.2f} | {:,.0f} | {:,.0f} | {:.2%} |".format(*columns))
        runs.append({"method": method, "steps": results, "peak_bytes": peaks, "same_positions": same})
    found = {"torch": torch.__version__, "dtype": str(arguments.dtype), "length": arguments.length, "runs": runs}
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder, GGUF file or hub id")
    parser.add_argument("--data", required=True, type=Path, help="text to repair on")
    parser.add_argument("--dtype", type=float_dtype, default=torch.bfloat16, help="torch dtype of training")
    parser.add_argument("--length", type=positive, default=512, help="tokens per window")
    parser.add_argument("--steps", type=positive, default=22, help=f"steps of each side, {WARM_UP} of them to warm up")
    parser.add_argument("--methods", nargs="+", choices=DENSITIES, default=list(DENSITIES), help="what is trained")
    parser.add_argument("--out", type=output_file, required=True, help="JSON file of the results")
    arguments = parser.parse_args()
    if arguments.steps <= WARM_UP:
        parser.error(f"--steps must be more than {WARM_UP}, because {WARM_UP} steps warm up; it is {arguments.steps}")
    return arguments


def _kind(config: RepairConfig, step: int) -> str:
    """Return whether a step is in the gradient window of a topology event."""
    event = next_event(config, step)
    return KINDS[not config.trains_all and event is not None and event - step < WINDOW[config.variant]]


def _same_positions(one: Path, two: Path) -> float:
    """Return the fraction of the active positions of the first state that are also active in the second state.

    If all nonzeros are trained, return the fraction of the bytes of the masks that are equal.
    """
    first, second = (load_file(folder / "repair.safetensors") for folder in (one, two))
    active = [torch.isin(first[key], second[key]) for key in first if key.endswith("active.indices")]
    equal = torch.cat(active or [(first[key] == second[key]).flatten() for key in first if key.endswith("/kept")])
    return float(equal.double().mean())


def _serve(setting: Setting, pipe: Any) -> None:
    """Run one side, in one or two processes. The first process answers the requests."""
    if setting.processes == 1:
        _train(setting, pipe)
    else:
        launch(setting.processes, partial(_train, setting, pipe))


def _train(setting: Setting, pipe: Any) -> None:
    torch.set_num_threads(2 // setting.processes)
    use_float32_products()
    with process_group(setting.processes):
        pruned = PruneConfig(0.6, PruneMethod.MAGNITUDE)
        source, model = find(setting.model), None
        tokens = tokenize(read(setting.data), load_tokenizer(source))
        if rank() == 0 or not setting.sharded:
            model = load(source, dtype=setting.dtype).model
            prune_model(model, tokens[:0].view(0, 8), pruned)
        shards = Shards(model, "cpu") if setting.sharded else None
        send, receive = (shards.send, shards.receive) if shards else (broadcast, partial(broadcast, None))
        model = shards.model if shards else model
        trim_memory()
        forget_peak("cpu")
        counter = _Counter()  # type: ignore[no-untyped-call]
        with in_parallel(shards):
            repair = Repair(model, tokens, setting.config(), pruned=pruned)

        def step() -> tuple[float, int]:
            send(True)
            began, counter.sent = time.perf_counter(), 0
            with in_parallel(shards), counter:
                repair.advance()
            took = time.perf_counter() - began
            if repair.step == setting.steps:
                repair.save(setting.state)
            return took, counter.sent

        if rank() == 0:
            answer(pipe, step, partial(peak_bytes, "cpu"))
            send(False)
        else:
            while receive():
                with in_parallel(shards):
                    repair.advance()


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that this process sends: the tensors that are summed over processes, and its parts of blocks.

    With two processes, each sends about these bytes to the other one.
    """

    sent = 0

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        match str(func):
            case "c10d.allreduce_.default":
                sent = args[0]
            case "c10d._allgather_base_.default":
                sent = [args[1]]
            case name if name.startswith("c10d."):
                raise NotImplementedError(name)
            case _:
                sent = []
        self.sent += sum(tensor.nbytes for tensor in sent)
        return func(*args, **(kwargs or {}))


if __name__ == "__main__":
    main()
