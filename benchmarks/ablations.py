"""What does each part of SEFT contribute? The same short run with one part removed or changed.

    python -m benchmarks.ablations --model GGUF --data wikitext2_valid.txt --test wikitext2_test.txt --out cells.json

Each run has 40 steps of 2 x 512 tokens at the default learning rate, a topology event every ten steps, and one seed.
`benchmarks.trial` describes how the model is pruned and evaluated. A part is removed by replacing a function of the
library during the run, by the one of the published variant if the paper has another rule.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.trial import BATCH, LENGTH, Cell, Cells, Trial, parser
from seft.config import RepairConfig, Variant
from seft.repair import evolve, fixed_mask, optimizer, schedule
from seft.repair.positions import entries
from seft.repair.published import PublishedWindow
from seft.repair.window import Window

BASE = RepairConfig(
    steps=40, update_interval=10, batch_tokens=BATCH * LENGTH, sequence_tokens=LENGTH, micro_batch=BATCH
)
INTERVALS = (5, 20, 40)
Change = Mapping[tuple[Any, str], Any]
"""What replaces a function or a constant of the library, by its owner and its name."""


def main() -> None:
    """Run the experiments that have no saved result, and print the table."""
    arguments = parser(__doc__).parse_args()
    trial, cells = Trial(arguments), Cells(arguments.out)
    print("| run | perplexity | zeros grown |\n|---|---|---|")
    for name, (config, change) in RUNS.items():
        cell = cells.fill(name, partial(_run, trial, config, change))
        print(f"| {name} | {cell['perplexity']:.2f} | {cell['grown_zeros']:,} |", flush=True)


def _run(trial: Trial, config: RepairConfig, change: Change) -> Cell:
    with _changed(change):
        return trial.train(config, trial.work / "ablation.safetensors")


@contextmanager
def _changed(change: Change) -> Iterator[None]:
    with ExitStack() as stack:
        for (owner, name), replacement in change.items():
            stack.enter_context(patch.object(owner, name, replacement))
        yield


def _at_nonzeros(*arguments: Any, **named: Any) -> evolve.Choice:
    weight, kept, dropped, growth, removal = arguments
    return CHOOSE(weight, kept, dropped, growth[entries(weight, growth.indices) != 0], removal, **named)


def _magnitude(window: Window, places: torch.Tensor) -> torch.Tensor:
    return entries(window._weight, places).abs()


def _equal_draws(_: Window, gradient: torch.Tensor, __: slice) -> torch.Tensor:
    return torch.ones_like(gradient)


class _PublishedRemoval(PublishedWindow):
    """The gradient window of the improved variant, except that the smallest |W * gradient| becomes zero."""

    clipped = Window.clipped
    _sample = Window._sample

    def _list(self, gradient: torch.Tensor, rows: slice, taken: torch.Tensor) -> None:
        super()._list(gradient, rows, taken)
        Window._list(self, gradient, rows, taken)


CHOOSE = evolve.choose
LATER = dict.fromkeys(Variant, 5)
RUNS: dict[str, tuple[RepairConfig, Change]] = {
    "as built": (BASE, {}),
    "as published": (replace(BASE, variant=Variant.PUBLISHED), {}),
    "growth at nonzeros only": (BASE, {(evolve, "choose"): _at_nonzeros}),
    "grown entries start with empty moments": (BASE, {(optimizer, "seed_moments"): lambda *_: None}),
    "the largest gradients grow": (BASE, {(Window, "_draws"): _equal_draws}),
    "steps of full size everywhere": (BASE, {(Window, "_sample"): PublishedWindow._sample}),
    "the opening after 5 steps, windows of 5 steps": (
        BASE,
        {(schedule, "OPENING"): LATER, (schedule, "WINDOW"): LATER},
    ),
    "adapt by |W * gradient|": (BASE, {(fixed_mask, "WINDOWS"): {Variant.IMPROVED: _PublishedRemoval}}),
    "adapt by magnitude": (BASE, {(Window, "_sensitivity"): _magnitude}),
    **{f"an event every {interval} steps": (replace(BASE, update_interval=interval), {}) for interval in INTERVALS},
}


if __name__ == "__main__":
    main()
