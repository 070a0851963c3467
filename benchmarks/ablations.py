"""What does each part of SEFT contribute? The same short run with one part removed or changed.

    python -m benchmarks.ablations --model GGUF --data wikitext2_valid.txt --test wikitext2_test.txt --out cells.json

Each run has 40 steps of 2 x 512 tokens at the default learning rate, a topology event every ten steps, and one seed.
`benchmarks.trial` describes how the model is pruned and evaluated. A part is removed by replacing a function of the
library during the run.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.trial import BATCH, LENGTH, Cell, Cells, Trial, parser
from seft.config import RepairConfig
from seft.repair import evolve, optimizer
from seft.repair.positions import entries
from seft.repair.window import Window

BASE = RepairConfig(
    steps=40, update_interval=10, batch_tokens=BATCH * LENGTH, sequence_tokens=LENGTH, micro_batch=BATCH
)
INTERVALS = (5, 20, 40)


def main() -> None:
    """Run the experiments that have no saved result, and print the table."""
    arguments = parser(__doc__).parse_args()
    trial, cells = Trial(arguments), Cells(arguments.out)
    print("| run | perplexity | zeros grown |\n|---|---|---|")
    for name, (config, change) in RUNS.items():
        cell = cells.fill(name, partial(_run, trial, config, change))
        print(f"| {name} | {cell['perplexity']:.2f} | {cell['grown_zeros']:,} |", flush=True)


def _run(trial: Trial, config: RepairConfig, change: Mapping[tuple[Any, str], Callable[..., Any]]) -> Cell:
    with _changed(change):
        return trial.train(config, trial.work / "ablation.safetensors")


@contextmanager
def _changed(change: Mapping[tuple[Any, str], Callable[..., Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        for (owner, name), replacement in change.items():
            stack.enter_context(patch.object(owner, name, replacement))
        yield


def _at_nonzeros(*arguments: Any, **named: Any) -> evolve.Choice:
    weight, kept, dropped, growth, removal = arguments
    return CHOOSE(weight, kept, dropped, growth[entries(weight, growth.indices) != 0], removal, **named)


def _magnitude(_: Window, weight: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return entries(weight, places).abs()


def _equal_draws(_: Window, gradient: torch.Tensor, __: int) -> torch.Tensor:
    return torch.ones_like(gradient)


def _unscaled(*_: object) -> torch.Tensor:
    return torch.tensor(0.0)


CHOOSE = evolve.choose
RUNS: dict[str, tuple[RepairConfig, dict[tuple[Any, str], Callable[..., Any]]]] = {
    "as built": (BASE, {}),
    "growth at nonzeros only": (BASE, {(evolve, "choose"): _at_nonzeros}),
    "grown entries start with empty moments": (BASE, {(optimizer, "seed_moments"): lambda *_: None}),
    "the largest gradients grow": (BASE, {(Window, "_draws"): _equal_draws}),
    "steps of full size everywhere": (BASE, {(optimizer, "typical_gradient"): _unscaled}),
    "adapt by magnitude": (BASE, {(Window, "_sensitivity"): _magnitude}),
    **{f"an event every {interval} steps": (replace(BASE, update_interval=interval), {}) for interval in INTERVALS},
}


if __name__ == "__main__":
    main()
