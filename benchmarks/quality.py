"""Which repair method gives the best model, with equal steps and equal numbers of trained values? One table.

    python -m benchmarks.quality --model GGUF --data wikitext2_valid.txt --test wikitext2_test.txt \\
        --questions ARC-Easy_test.json --out quality.json

Every recipe is trained with three learning rates, and the best result counts. The recipes are the repair methods after
Wanda, and `seft` with all nonzeros trained in place after several pruners. A run has 100 steps of 2 x 512 tokens, one
seed and linear decay of the learning rate. The dense and the pruned model are measured too. The columns are perplexity,
and with `--questions` accuracy on the first 500 questions of ARC-Easy in the dtype of training. `benchmarks.trial`
describes how the model is pruned and evaluated. Results are saved, and an interrupted run resumes.
"""

import json
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from benchmarks.trial import BATCH, LENGTH, PRUNE, Cell, Cells, Trial, parser
from seft.checkpoint.pack import load_pruned
from seft.choices import Question, accuracy
from seft.config import Compare, PruneConfig, PruneMethod, PruneSchedule, RepairConfig, RepairMethod, Variant

STEPS = 100
QUESTIONS = 500
RATES_OF_ALL = (5e-4, 1e-3, 2e-3)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is pruned and repaired, and the learning rates to try."""

    method: RepairMethod
    rates: tuple[float, ...]
    density: float | Literal["all"] = 0.005
    prune: PruneConfig = PRUNE
    variant: Variant = Variant.IMPROVED

    def config(self, rate: float, steps: int = STEPS, length: int = LENGTH) -> RepairConfig:
        """Return the settings of one run. With the method seft, a topology event follows every ten steps."""
        return RepairConfig(
            steps=steps,
            method=self.method,
            variant=self.variant,
            density=self.density,
            learning_rate=rate,
            update_interval=10,
            batch_tokens=BATCH * length,
            sequence_tokens=length,
            micro_batch=BATCH,
        )


def trains_all(prune: PruneConfig) -> Recipe:
    """Return the recipe that trains all nonzeros in place after this pruning, or while it happens."""
    return Recipe(RepairMethod.SEFT, RATES_OF_ALL, "all", prune)


RECIPES = {
    "seft": Recipe(RepairMethod.SEFT, (1e-2, 3e-2, 1e-1)),
    "seft-published": Recipe(RepairMethod.SEFT, (1e-3, 3e-3, 1e-2), variant=Variant.PUBLISHED),
    "masked_lora": Recipe(RepairMethod.MASKED_LORA, (3e-3, 1e-2, 3e-2)),
    "fixed_mask": Recipe(RepairMethod.FIXED_MASK, (1e-2, 3e-2, 1e-1)),
    "masked_full": Recipe(RepairMethod.MASKED_FULL, (3e-4, 1e-3, 3e-3)),
    "spp": Recipe(RepairMethod.SPP, (1e-2, 3e-2, 1e-1)),
    "lora_reprune": Recipe(RepairMethod.LORA_REPRUNE, (3e-3, 1e-2, 3e-2)),
    "all": trains_all(PRUNE),
    "all-sparsegpt": trains_all(replace(PRUNE, method=PruneMethod.SPARSEGPT)),
    "all-admm": trains_all(replace(PRUNE, method=PruneMethod.ADMM)),
    "all-gradual": trains_all(PruneConfig(0.6, schedule=PruneSchedule.GRADUAL)),
    "all-gradual-model": trains_all(PruneConfig(0.6, schedule=PruneSchedule.GRADUAL, compare=Compare.MODEL)),
}
"""Recipes by name. Those that begin with `all` train all nonzeros; `all` alone does so after Wanda."""


def main() -> None:
    """Run the experiments that have no saved result, one after another, and print the table."""
    options = parser(__doc__)
    options.add_argument("--questions", type=Path, help="JSON file of ARC-Easy in instruction form; default: none")
    options.add_argument(
        "--recipes", nargs="*", choices=RECIPES, default=list(RECIPES), help="recipes to run; default: all"
    )
    options.add_argument("--rates", nargs="*", type=float, help="learning rates; default: those of the recipe")
    arguments = options.parse_args()
    trial, cells = Trial(arguments), Cells(arguments.out)
    questions = read_questions(arguments.questions) if arguments.questions else []

    def answers(name: str, weights: Path) -> Cell:
        """Return the accuracy of the model with the weights in a file; nothing if there are no questions."""
        make = partial(_accuracy, trial, weights, questions)
        return cells.fill(f"{name} answers", make) if questions else {}

    print(f"| recipe | values trained | rate | perplexity | ARC-Easy | per byte |\n{'|---' * 6}|")
    for name, weights in (("dense", trial.dense), ("pruned", trial.pruned)):
        cell = cells.fill(name, partial(_perplexity, trial, weights))
        print(row(name, cell, answers(name, weights)), flush=True)
    for name in arguments.recipes:
        recipe = RECIPES[name]
        results = {rate: trial.work / f"{name} {rate:g}.safetensors" for rate in arguments.rates or recipe.rates}
        by_rate = {
            rate: cells.fill(f"{name} {rate:g}", partial(trial.train, recipe.config(rate), result, recipe.prune))
            for rate, result in results.items()
        }
        best = min(by_rate, key=lambda rate: float(by_rate[rate]["perplexity"]))
        if questions and not results[best].exists():
            trial.train(recipe.config(best), results[best], recipe.prune)  # its weights are not in the folder
        rates = ", ".join(f"{cell['perplexity']:.2f} ({rate:g})" for rate, cell in by_rate.items())
        judged = answers(f"{name} {best:g}", results[best])
        print(row(name, by_rate[best], judged, f"{best:g}"), f"<!-- {rates} -->", flush=True)


def _perplexity(trial: Trial, weights: Path) -> Cell:
    return {"perplexity": trial.perplexity(weights)}


def _accuracy(trial: Trial, weights: Path, questions: list[Question]) -> Cell:
    load_pruned(trial.model, weights)
    score = accuracy(trial.model, trial.tokenizer, questions)
    return {"accuracy": score.accuracy, "accuracy_per_byte": score.accuracy_per_byte}


def read_questions(path: Path) -> list[Question]:
    """Return the first questions in a file of ARC-Easy."""
    return [question(record) for record in json.loads(path.read_text())[:QUESTIONS]]


def question(record: dict[str, str]) -> Question:
    """Return a question of ARC from LLM-Adapters in the form that lm-evaluation-harness uses."""
    text, _, rest = (
        record["instruction"]
        .removeprefix("Please choose the correct answer to the question: ")
        .partition("\n\nAnswer1: ")
    )
    choices = re.split(r" Answer\d: ", rest.partition("\n\nAnswer format:")[0])
    return Question(f"Question: {text}\nAnswer:", choices, int(record["answer"].removeprefix("answer")) - 1)


def row(name: str, cell: Cell, judged: Cell, rate: str = "") -> str:
    """Return a row of the table in Markdown. `judged` is the result with the accuracy."""
    trained = f"{cell['trained']:,}" if "trained" in cell else ""
    accuracies = f"{judged['accuracy']:.1%} | {judged['accuracy_per_byte']:.1%}" if judged else " | "
    return f"| {name} | {trained} | {rate} | {cell['perplexity']:.2f} | {accuracies} |"


if __name__ == "__main__":
    main()
