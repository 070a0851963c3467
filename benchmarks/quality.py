"""Which repair method gives the best model, with equal steps and equal numbers of trained values? One table.

    python -m benchmarks.quality --model GGUF --data wikitext2_valid.txt --test wikitext2_test.txt \\
        --questions ARC-Easy_test.json --out quality.json

Every method is trained with three learning rates, and the best result counts. A run has 100 steps of 2 x 512 tokens,
one seed and linear decay of the learning rate. The dense and the pruned model are measured too. The columns are
perplexity, and accuracy on the first 500 questions of ARC-Easy in the dtype of training. `benchmarks.trial` describes
how the model is pruned and evaluated. Results are saved, and an interrupted run resumes.
"""

import json
import re
from functools import partial
from pathlib import Path

from benchmarks.trial import BATCH, LENGTH, Cell, Cells, Trial, parser
from seft.checkpoint.pack import load_pruned
from seft.choices import Question, accuracy
from seft.config import RepairConfig, RepairMethod, Variant

STEPS = 100
QUESTIONS = 500
RATES: dict[RepairMethod, tuple[float, ...]] = {
    RepairMethod.SEFT: (1e-2, 3e-2, 1e-1),
    RepairMethod.MASKED_LORA: (3e-3, 1e-2, 3e-2),
    RepairMethod.FIXED_MASK: (1e-2, 3e-2, 1e-1),
    RepairMethod.MASKED_FULL: (3e-4, 1e-3, 3e-3),
    RepairMethod.SPP: (1e-2, 3e-2, 1e-1),
    RepairMethod.LORA_REPRUNE: (3e-3, 1e-2, 3e-2),
}
PUBLISHED_RATES = (1e-3, 3e-3, 1e-2)


def main() -> None:
    """Run the experiments that have no saved result, one after another, and print the table."""
    options = parser(__doc__)
    options.add_argument("--questions", required=True, type=Path, help="JSON file of ARC-Easy in instruction form")
    options.add_argument(
        "--methods", nargs="*", type=RepairMethod, default=list(RATES), help="methods to run; default: all"
    )
    options.add_argument(
        "--variant", type=Variant, default=Variant.IMPROVED, help="rules of seft; published allows no other method"
    )
    arguments = options.parse_args()
    variant, published = arguments.variant, arguments.variant is Variant.PUBLISHED
    trial, cells = Trial(arguments), Cells(arguments.out)
    questions = [question(record) for record in json.loads(arguments.questions.read_text())[:QUESTIONS]]

    def answers(weights: Path) -> Cell:
        load_pruned(trial.model, weights)
        score = accuracy(trial.model, trial.tokenizer, questions)
        return {"accuracy": score.accuracy, "accuracy_per_byte": score.accuracy_per_byte}

    print(f"| method | values trained | rate | perplexity | ARC-Easy | per byte |\n{'|---' * 6}|")
    for name, weights in (("dense", trial.dense), ("pruned", trial.pruned)):
        judged = cells.fill(name, lambda weights=weights: {"perplexity": trial.perplexity(weights), **answers(weights)})  # type: ignore[misc]
        print(row(name, judged, judged))
    for method in [RepairMethod.SEFT] if published else arguments.methods:
        name, rates = (f"{method} as published", PUBLISHED_RATES) if published else (str(method), RATES[method])
        results = {rate: trial.work / f"{name} {rate:g}.safetensors" for rate in rates}
        by_rate = {
            rate: cells.fill(f"{name} {rate:g}", partial(trial.train, config(method, rate, variant), result))
            for rate, result in results.items()
        }
        best = min(by_rate, key=lambda rate: float(by_rate[rate]["perplexity"]))
        if f"{name} {best:g} answers" not in cells.results and not results[best].exists():
            trial.train(config(method, best, variant), results[best])  # its weights are not in the folder
        judged = cells.fill(f"{name} {best:g} answers", partial(answers, results[best]))
        perplexities = ", ".join(f"{cell['perplexity']:.2f} ({rate:g})" for rate, cell in by_rate.items())
        print(row(name, by_rate[best], judged, f"{best:g}"), f"<!-- {perplexities} -->", flush=True)


def config(method: RepairMethod, rate: float, variant: Variant = Variant.IMPROVED) -> RepairConfig:
    """Return the settings of one run. With the method seft, a topology event follows every ten steps."""
    return RepairConfig(
        steps=STEPS,
        method=method,
        variant=variant,
        learning_rate=rate,
        update_interval=10,
        batch_tokens=BATCH * LENGTH,
        sequence_tokens=LENGTH,
        micro_batch=BATCH,
    )


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
    accuracies = f"{judged['accuracy']:.1%} | {judged['accuracy_per_byte']:.1%}"
    return f"| {name} | {trained} | {rate} | {cell['perplexity']:.2f} | {accuracies} |"


if __name__ == "__main__":
    main()
