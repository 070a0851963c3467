"""Which method of repair heals best, at equal steps and equal numbers of trained values? One table.

    python -m benchmarks.quality --model GGUF --data wikitext2_valid.txt --test wikitext2_test.txt \\
        --questions ARC-Easy_test.json --out quality.json

Every method at the best of three learning rates, 100 steps of 2 x 512 tokens, one seed, linear decay, beside the
dense and the pruned model: perplexity, and accuracy on the first 500 questions of ARC-Easy, in the dtype of training.
`benchmarks.trial` says the rest. Finished cells are kept, so a run that was stopped goes on.
"""

import json
import re
from functools import partial
from pathlib import Path

from benchmarks.trial import BATCH, LENGTH, Cell, Cells, Trial, parser
from seft.checkpoint.pack import load_pruned
from seft.choices import Question, accuracy
from seft.config import RepairConfig, RepairMethod

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


def main() -> None:
    """Fill the missing cells, one after another, and print the table."""
    wanted = parser(__doc__)
    wanted.add_argument("--questions", required=True, type=Path, help="ARC-Easy in instruction form, JSON")
    wanted.add_argument("--methods", nargs="*", type=RepairMethod, default=list(RATES), help="rows to fill")
    arguments = wanted.parse_args()
    trial, cells = Trial(arguments), Cells(arguments.out)
    questions = [question(record) for record in json.loads(arguments.questions.read_text())[:QUESTIONS]]

    def answers(weights: Path) -> Cell:
        load_pruned(trial.model, weights)
        found = accuracy(trial.model, trial.tokenizer, questions)
        return {"accuracy": found.accuracy, "accuracy_per_byte": found.accuracy_per_byte}

    print(f"| method | values trained | rate | perplexity | ARC-Easy | per byte |\n{'|---' * 6}|")
    for name, weights in (("dense", trial.dense), ("pruned", trial.pruned)):
        judged = cells.fill(name, lambda weights=weights: {"perplexity": trial.perplexity(weights), **answers(weights)})  # type: ignore[misc]
        print(row(name, judged, judged))
    for method in arguments.methods:
        results = {rate: trial.work / f"{method} {rate:g}.safetensors" for rate in RATES[method]}
        of_rate = {
            rate: cells.fill(f"{method} {rate:g}", partial(trial.train, config(method, rate), result))
            for rate, result in results.items()
        }
        best = min(of_rate, key=lambda rate: float(of_rate[rate]["perplexity"]))
        if f"{method} {best:g} answers" not in cells.found and not results[best].exists():
            trial.train(config(method, best), results[best])  # the folder of weights was lost, or never here
        judged = cells.fill(f"{method} {best:g} answers", partial(answers, results[best]))
        rates = ", ".join(f"{cell['perplexity']:.2f} ({rate:g})" for rate, cell in of_rate.items())
        print(row(str(method), of_rate[best], judged, f"{best:g}"), f"<!-- {rates} -->", flush=True)


def config(method: RepairMethod, rate: float) -> RepairConfig:
    """A run of one method; the topology of seft changes every ten steps."""
    return RepairConfig(
        steps=STEPS,
        method=method,
        learning_rate=rate,
        update_interval=10,
        batch_tokens=BATCH * LENGTH,
        sequence_tokens=LENGTH,
        micro_batch=BATCH,
    )


def question(record: dict[str, str]) -> Question:
    """One record of LLM-Adapters' ARC as lm-evaluation-harness would ask it."""
    asked, _, rest = (
        record["instruction"]
        .removeprefix("Please choose the correct answer to the question: ")
        .partition("\n\nAnswer1: ")
    )
    choices = re.split(r" Answer\d: ", rest.partition("\n\nAnswer format:")[0])
    return Question(f"Question: {asked}\nAnswer:", choices, int(record["answer"].removeprefix("answer")) - 1)


def row(name: str, cell: Cell, judged: Cell, rate: str = "") -> str:
    """A line of the table."""
    trained = f"{cell['trained']:,}" if "trained" in cell else ""
    accuracies = f"{judged['accuracy']:.1%} | {judged['accuracy_per_byte']:.1%}"
    return f"| {name} | {trained} | {rate} | {cell['perplexity']:.2f} | {accuracies} |"


if __name__ == "__main__":
    main()
