"""Which learning rate is best for each method at ten times as many trained values? The experiment behind `auto`.

    python -m benchmarks.rates --model GGUF --data wikitext2_valid.txt --test wikitext2_test.txt --out rates.json

Trains 5 % of the weights instead of the 0.5 % of `benchmarks.quality`, for 40 steps of 2 x 512 tokens with one seed.
`benchmarks.trial` describes how the model is pruned and evaluated. Results are saved, and an interrupted run resumes.
"""

from dataclasses import replace
from functools import partial

from benchmarks.quality import RECIPES
from benchmarks.trial import Cells, Trial, parser
from seft.config import RepairMethod

DENSITY, STEPS = 0.05, 40
RATES = {
    RepairMethod.SEFT: (3e-3, 1e-2, 3e-2),
    RepairMethod.FIXED_MASK: (3e-3, 1e-2, 3e-2),
    RepairMethod.MASKED_LORA: (1e-3, 3e-3, 1e-2),
    RepairMethod.SPP: (1e-2, 3e-2, 1e-1),
    RepairMethod.LORA_REPRUNE: (1e-3, 3e-3, 1e-2),
}


def main() -> None:
    """Run the experiments that have no saved result, and print the table."""
    arguments = parser(__doc__).parse_args()
    trial, cells = Trial(arguments), Cells(arguments.out)
    print(f"| method | values trained | perplexity by rate |\n{'|---' * 3}|")
    for method, rates in RATES.items():
        by_rate = {}
        for rate in rates:
            settings = replace(RECIPES[method].config(rate), density=DENSITY, steps=STEPS)
            make = partial(trial.train, settings, trial.work / "rates.safetensors")
            by_rate[rate] = cells.fill(f"{method} {rate:g}", make)
        perplexities = " · ".join(f"{cell['perplexity']:.2f} ({rate:g})" for rate, cell in by_rate.items())
        print(f"| {method} | {by_rate[rates[0]]['trained']:,} | {perplexities} |", flush=True)


if __name__ == "__main__":
    main()
