"""What does repair cost, and what does it gain? Step times compared with a minimum, and perplexity after a short run.

    python -m benchmarks.repair --model GGUF --data wikitext2_valid.txt --test wikitext2_test.txt

The model is pruned by Wanda to 60 % zeros on 48 windows (sequences) of 512 tokens, and saved in the working folder for
later runs. *floor* is the same forward pass and a backward pass to the inputs, with nothing trained. *dense* also
computes the gradient of every pruned weight matrix, as full fine-tuning under a mask does. Steps of each kind are timed
in turn. The table has medians.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from seft.checkpoint.pack import load_pruned, save_pruned
from seft.config import CalibrationOrder, PruneConfig, PruneMethod, RepairConfig
from seft.data.records import read
from seft.data.text import tokenize, windows
from seft.evaluate import perplexity
from seft.loss import TokenLoss
from seft.models.load import Loaded, load
from seft.models.source import find
from seft.models.targets import target_linears
from seft.prune.loop import prune_model
from seft.repair import Repair
from seft.report import Evolved, Judged, Progress, Report, Step

BATCH, LENGTH = 2, 512
WARM_UP = 3


def main() -> None:
    """Run the requested measurements, and write the results as JSON."""
    arguments = _arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    loaded = load(find(arguments.model))
    tokens = tokenize(read(arguments.data), loaded.tokenizer)
    _prune(loaded, tokens, arguments.work / "pruned.safetensors")
    results: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if arguments.rounds:
        results["cost"] = _cost(loaded.model, tokens, arguments.rounds)
    if arguments.steps:
        test = windows(tokenize(read(arguments.test), loaded.tokenizer), 1024, 20, CalibrationOrder.SEQUENTIAL, 0)
        results["quality"] = _quality(loaded.model, tokens, test, arguments)
    (arguments.work / "repair.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder, GGUF file or hub id")
    parser.add_argument("--data", required=True, type=Path, help="text to prune and repair on")
    parser.add_argument("--test", required=True, type=Path, help="text to measure perplexity on")
    parser.add_argument(
        "--work", type=Path, default=Path("build/repair"), help="folder of the pruned model and the results"
    )
    parser.add_argument("--rounds", type=int, default=7, help="rounds of timing; 0 skips timing")
    parser.add_argument("--steps", type=int, default=40, help="steps of the quality run; 0 skips it")
    parser.add_argument("--learning-rate", type=float, default=None, help="default: auto")
    parser.add_argument("--update-interval", type=int, default=10, help="steps between two events")
    parser.add_argument("--seed", type=int, default=0, help="seed of the quality run")
    return parser.parse_args()


def _prune(loaded: Loaded, tokens: torch.Tensor, path: Path) -> None:
    if not path.exists():
        calibration = windows(tokens, 512, 48, CalibrationOrder.SEQUENTIAL, 0)
        prune_model(loaded.model, calibration, PruneConfig(0.6, PruneMethod.WANDA))
        save_pruned(loaded.model, path)
    load_pruned(loaded.model, path)


def _cost(model: Any, tokens: torch.Tensor, rounds: int) -> dict[str, Any]:
    floor, dense = _plain(model, dense=False), _plain(model, dense=True)
    config = RepairConfig(steps=10_000, batch_tokens=BATCH * LENGTH, sequence_tokens=LENGTH, micro_batch=BATCH)
    repair = Repair(copy.deepcopy(model), tokens, config)
    batch = tokens[: BATCH * LENGTH].view(BATCH, LENGTH)
    sides: dict[str, Callable[[], object]] = {
        "floor": lambda: floor(batch),
        "dense": lambda: dense(batch),
        "repair": repair.advance,
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(WARM_UP + rounds):
        for name, run in sides.items():
            began = time.perf_counter()
            run()
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "seconds": medians,
        "to_floor": {name: median / medians["floor"] for name, median in medians.items()},
        "bytes_per_active": _bytes_per_active(repair),
    }


def _bytes_per_active(repair: Repair) -> float:
    """Return the bytes that repair needs besides the weights, per active position (trained weight).

    All these bytes are in the saved state.
    """
    with tempfile.TemporaryDirectory() as folder:
        repair.save(Path(folder))
        tensors = load_file(Path(folder) / "repair.safetensors")
    active = sum(len(tensor) for name, tensor in tensors.items() if name.endswith("/active.indices"))
    return sum(tensor.nbytes for tensor in tensors.values()) / active


def _plain(model: Any, dense: bool) -> Callable[[torch.Tensor], None]:
    """Return a function that runs the forward and backward pass of one step without repair.

    With `dense`, the backward pass also computes the gradients of the weights.
    """
    twin = copy.deepcopy(model).requires_grad_(False)
    twin.enable_input_require_grads()
    weights = [target.parameter.requires_grad_(dense) for target in target_linears(twin).values()]
    losses = TokenLoss(twin)

    def step(batch: torch.Tensor) -> None:
        losses(batch).mean().backward()  # type: ignore[no-untyped-call]
        for weight in weights:
            weight.grad = None

    return step


def _quality(model: Any, tokens: torch.Tensor, test: torch.Tensor, arguments: argparse.Namespace) -> dict[str, Any]:
    config = RepairConfig(
        steps=arguments.steps,
        learning_rate=arguments.learning_rate or "auto",
        update_interval=arguments.update_interval,
        batch_tokens=BATCH * LENGTH,
        sequence_tokens=LENGTH,
        seed=arguments.seed,
    )
    pruned = perplexity(model, test)
    repair = Repair(model, tokens, config)
    began = time.perf_counter()
    repair.run(_print)
    seconds = time.perf_counter() - began
    repair.finish()
    grown = repair.grown_zeros
    return {"pruned": pruned, "repaired": perplexity(model, test), "grown_zeros": grown, "seconds": seconds}


def _print(report: Report) -> None:
    match report:
        case Step() | Evolved() | Judged():
            print(report, flush=True)
        case Progress():
            pass


if __name__ == "__main__":
    main()
