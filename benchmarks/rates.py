"""Which rate does each method want where ten times as many values are trained? The experiment behind `auto`.

    python -m benchmarks.rates --model GGUF --data wikitext2_valid.txt --test wikitext2_test.txt --out rates.json

A density of 5 %, where `benchmarks.quality` has 0.5 %, and 40 steps of 2 x 512 tokens, one seed; `benchmarks.trial`
says how it is pruned and judged. Finished cells are kept.
"""

from dataclasses import replace
from functools import partial

from benchmarks.quality import config
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
    """Fill the missing cells and print the table."""
    arguments = parser(__doc__).parse_args()
    trial, cells = Trial(arguments), Cells(arguments.out)
    print(f"| method | values trained | perplexity by rate |\n{'|---' * 3}|")
    for method, rates in RATES.items():
        of_rate = {}
        for rate in rates:
            wanted = replace(config(method, rate), density=DENSITY, steps=STEPS)
            make = partial(trial.train, wanted, trial.work / "rates.safetensors")
            of_rate[rate] = cells.fill(f"{method} {rate:g}", make)
        found = " · ".join(f"{cell['perplexity']:.2f} ({rate:g})" for rate, cell in of_rate.items())
        print(f"| {method} | {of_rate[rates[0]]['trained']:,} | {found} |", flush=True)


if __name__ == "__main__":
    main()
