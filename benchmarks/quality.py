"""Which way to prune and repair gives the best model? Runs studies, which are grids of experiments.

    python -m benchmarks.quality methods --model GGUF --data DIR

`benchmarks.studies` lists the studies and `benchmarks.cells` describes an experiment. `--data` is a folder with
WikiText-2, GSM8K and ARC-Easy, under the names in `benchmarks.cells`. One experiment runs per core. Each result is
added to a file at once, with the settings, the commit and a hash of the code. An experiment that has a result with the
same settings and code is not run again. So an interrupted study resumes. Weights are kept too, in the folder of
`--work`. To run everything again, name another file with `--results` and another folder with `--work`.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.arguments import positive
from benchmarks.cells import Bench, Cell, Figures, code_hash, completed, key
from benchmarks.plots import plot, plot_recovery
from benchmarks.recipes import RECIPES, WANDA
from benchmarks.studies import STUDIES, Study
from seft.float32_products import use_float32_products

RESULTS = Path(__file__).parent / "results.jsonl"
SECONDS = Path(__file__).parent / "steps-amx.json"
"""Seconds per step of every method, by `benchmarks.step` on a quiet machine."""
STEP = {"dtype": "bfloat16", "shape": "2x512", "density": 0.005}
"""The runs in `SECONDS` whose steps are like those of a study."""
COLUMNS = ("wikitext2", "gsm8k", "recovered", "accuracy", "trained", "seconds", "peak_bytes")


def main() -> None:
    """Run the experiments that have no result, and print the table of each study."""
    arguments = _arguments()
    studies = chosen({name: STUDIES[name]() for name in arguments.studies}, arguments.only)
    results = Results(arguments.results, Path(arguments.model).name, arguments.any_code)
    if not arguments.table:
        _run(arguments, results, {cell: label for study in studies.values() for label, cell in study.items()})
    for name, study in studies.items():
        print(f"\n{name}\n\n{table(study, results)}")
        if arguments.plots:
            found = {label: figures for label, cell in study.items() if (figures := results[cell])}
            print("\n".join(map(str, plot(found, name, arguments.plots))))
            print(plot_recovery(recoveries(study, results, arguments.seconds), name, arguments.plots))


class Results:
    """File with one result per line. The newest line of an experiment counts."""

    def __init__(self, path: Path, model: str, any_code: bool) -> None:
        self._path, self._model, self._code = path, model, code_hash()
        self._rows: dict[str, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            row = json.loads(line)
            if any_code or row["code"] == self._code:
                self._rows[key(row["model"], completed(row["settings"]))] = row

    def __getitem__(self, cell: Cell) -> Figures | None:
        row = self._rows.get(cell.key(self._model))
        return row and row["figures"]

    def add(self, cell: Cell, figures: Figures) -> None:
        """Append a result to the file."""
        row = {
            "model": self._model,
            "settings": cell.settings,
            "code": self._code,
            "commit": _commit(),
            "made_with": {"machine": platform.machine(), "torch": torch.__version__},
            "figures": figures,
        }
        self._rows[cell.key(self._model)] = row
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def table(study: Study, results: Results, columns: Sequence[str] = COLUMNS) -> str:
    """Return the results of a study as a table in Markdown, without the columns that have no figure."""
    rows = {
        label: figures | {"recovered": recovered(cell, figures, results)}
        for label, cell in study.items()
        if (figures := results[cell])
    }
    if not rows:
        return "No result. Results of other versions of the code need --any-code."
    used = [column for column in columns if any(row.get(column) is not None for row in rows.values())]
    lines = [f"| experiment | {' | '.join(used)} |", f"| --{' | --' * len(used)} |"]
    for label, row in rows.items():
        name = label.replace("|", "\\|")
        lines.append(f"| {name} | {' | '.join(_shown(column, row) for column in used)} |")
    return "\n".join(lines)


def recovered(cell: Cell, figures: Figures, results: Results) -> float | None:
    """Return which fraction of the gap in loss between Wanda and the ceiling a repair closes on its own text.

    The ceiling is the dense model after the same number of steps on the same text, at the best learning rate that has a
    result. Returns None if the experiment does
    not both prune and repair, and if Wanda or the ceiling has no result.
    """
    if (bounds := _bounds(cell, results)) is None:
        return None
    before, best = (each[cell.text] for each in bounds)
    return math.log(before / figures[cell.text]) / math.log(before / best)


def recovery(cell: Cell, results: Results, step_seconds: dict[str, list[float]]) -> list[tuple[float, float]] | None:
    """Return the points of a repair, each as (seconds of training, fraction as in `recovered`).

    A step has the median seconds of `benchmarks.step`, because a study may run beside other programs. Returns None if
    a figure or these seconds are missing.
    """
    figures, bounds = results[cell], _bounds(cell, results)
    if figures is None or bounds is None or "point" not in bounds[0] or cell.side not in step_seconds:
        return None
    before, best = bounds[0]["point"][cell.text], bounds[1]["curve"][-1][cell.text]
    step = statistics.median(step_seconds[cell.side])
    return [
        (point["step"] * step, math.log(before / point[cell.text]) / math.log(before / best))
        for point in figures["curve"]
    ]


def recoveries(study: Study, results: Results, seconds: Path = SECONDS) -> dict[str, list[tuple[float, float]]]:
    """Return the points of `recovery` by label, for the experiments that have them."""
    runs = [run for run in json.loads(seconds.read_text())["runs"] if run.items() >= STEP.items()]
    step_seconds = {side: times for run in runs for side, times in run["seconds"].items()}
    return {label: curve for label, cell in study.items() if (curve := recovery(cell, results, step_seconds))}


def equal_seconds(study: Study, results: Results, seconds: Path = SECONDS) -> str:
    """Return a table in Markdown: what each experiment has recovered at its end, and at the end of the fastest one.

    Experiments whose labels differ only in the last part are compared. When the fastest of them ends, the others still
    run, and their learning rate is still high.
    """
    groups: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for label, points in recoveries(study, results, seconds).items():
        groups.setdefault(label.rpartition(", ")[0], {})[label] = points
    lines = [
        "| experiment | seconds | recovered | seconds of the fastest | recovered then |",
        "| -- | -- | -- | -- | -- |",
    ]
    for curves in groups.values():
        end = min(points[-1][0] for points in curves.values())
        for label, points in curves.items():
            then = [part for time, part in points if time <= end][-1]
            lines.append(f"| {label} | {points[-1][0]:.0f} | {points[-1][1]:.1%} | {end:.0f} | {then:.1%} |")
    return "\n".join(lines)


def _bounds(cell: Cell, results: Results) -> tuple[Figures, Figures] | None:
    """Return the figures of Wanda and of the ceiling, which bound a repair. None if one of these has no result."""
    if cell.prune is None or cell.repair is None:
        return None
    sizes = {name: getattr(cell.repair, name) for name in ("steps", "batch_tokens", "sequence_tokens", "micro_batch")}
    recipe = RECIPES["ceiling"]
    ceilings = (results[Cell(None, replace(recipe.config(rate), **sizes), text=cell.text)] for rate in recipe.rates)
    ceiling = min((each for each in ceilings if each), key=lambda each: each[cell.text], default=None)
    wanda = replace(WANDA, sparsity=cell.prune.sparsity, pattern=cell.prune.pattern)
    pruned = results[Cell(wanda, text=cell.text)]
    return None if ceiling is None or pruned is None else (pruned, ceiling)


def _shown(column: str, figures: Figures) -> str:
    """Return a figure as text. An accuracy has its interval of 95 %, by the normal approximation."""
    value = figures.get(column)
    match column:
        case _ if value is None:
            return ""
        case "accuracy":
            half = 1.96 * math.sqrt(value * (1 - value) / figures["asked"])
            return f"{value:.1%} ± {half:.1%}"
        case "recovered":
            return f"{value:.1%}"
        case "peak_bytes":
            return f"{value / 1e6:,.0f} MB"
        case "trained" | "seconds":
            return f"{value:,.0f}"
        case _:
            return f"{value:.2f}"


def chosen(studies: dict[str, Study], only: list[str]) -> dict[str, Study]:
    """Return the experiments that the texts choose. Without texts, return all. Exits if a text chooses none.

    A text that is a label of a study chooses this label. Any other text chooses all labels that contain it.
    """

    def matches(text: str, label: str, study: Study) -> bool:
        return text == label if text in study else text in label

    if not only:
        return studies
    for text in only:
        if not any(matches(text, label, study) for study in studies.values() for label in study):
            labels = "; ".join(f"{name}: {' | '.join(study)}" for name, study in studies.items())
            sys.exit(f"no label contains {text!r}. The labels are: {labels}")
    found = {
        name: {label: cell for label, cell in study.items() if any(matches(text, label, study) for text in only)}
        for name, study in studies.items()
    }
    return {name: study for name, study in found.items() if study}


def _run(arguments: argparse.Namespace, results: Results, labels: dict[Cell, str]) -> None:
    """Run the experiments without a result, their bases first. Each experiment has a process with one thread."""
    os.environ["OMP_NUM_THREADS"] = "1"
    bench = Bench(arguments.model, arguments.data, arguments.work)
    arguments.work.mkdir(parents=True, exist_ok=True)
    wanted = [cell for cell in labels if not _complete(results[cell], arguments.questions)]
    for cell, label in labels.items():
        if cell not in wanted:
            print(f"{label}: has a result and is not run again", flush=True)
    texts = {bench.retained(cell): cell for cell in wanted}
    with ProcessPoolExecutor(arguments.cores, get_context("spawn"), max_tasks_per_child=1) as pool:
        missing = [cell for path, cell in texts.items() if path and not path.exists()]
        list(pool.map(partial(_retain, arguments), missing))
    for cells in rounds(wanted, bench):
        with ProcessPoolExecutor(arguments.cores, get_context("spawn"), max_tasks_per_child=1) as pool:
            code = code_hash()
            running = {
                pool.submit(_work, arguments, code, cell, labels.get(cell, "base"), results[cell]): cell
                for cell in cells
            }
            for done in as_completed(running):
                cell = running[done]
                if error := done.exception():
                    print(f"{labels.get(cell, 'base')}: {error!r}", flush=True)
                    continue
                results.add(cell, done.result())
                print(table({labels.get(cell, "base"): cell}, results).splitlines()[-1], flush=True)


def rounds(wanted: list[Cell], bench: Bench) -> list[list[Cell]]:
    """Return groups of experiments. A group starts from weights that earlier groups or earlier runs made."""
    groups: list[list[Cell]] = []
    while wanted:
        groups.insert(0, wanted)
        bases = dict.fromkeys(cell.base for cell in wanted if cell.base)
        wanted = [base for base in bases if not bench.weights(base).exists()]
    first: dict[Cell, int] = {}
    for number, group in enumerate(groups):
        for cell in group:
            first.setdefault(cell, number)
    return [[cell for cell, at in first.items() if at == number] for number in range(len(groups))]


def _complete(figures: Figures | None, questions: int) -> bool:
    return figures is not None and figures.get("asked", 0) >= questions


def _work(arguments: argparse.Namespace, code: str, cell: Cell, label: str, found: Figures | None) -> Figures:
    """Run an experiment, or only ask the questions if it has other figures and its weights are there."""
    if code_hash() != code:
        raise RuntimeError("the code changed since the study began; run it again")
    print(f"{label}: started", flush=True)
    use_float32_products()
    bench = Bench(arguments.model, arguments.data, arguments.work)
    if found and bench.weights(cell).exists():
        return found | bench.answer(cell, arguments.questions)
    return bench.run(cell, label, arguments.questions)


def _retain(arguments: argparse.Namespace, cell: Cell) -> None:
    use_float32_products()
    Bench(arguments.model, arguments.data, arguments.work).retain(cell)


def _commit() -> str:
    """Return the commit, with "-dirty" if a file other than the results has changed since."""
    commit = _git("rev-parse", "--short=10", "HEAD")
    changed = _git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results.jsonl")
    return f"{commit}-dirty" if changed else commit


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", choices=STUDIES, help="studies to run")
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        help="run only experiments with this label, or whose label contains this text",
    )
    parser.add_argument("--model", required=True, help="folder, GGUF file or hub id")
    parser.add_argument("--data", required=True, type=Path, help="folder of the texts")
    parser.add_argument("--questions", type=int, default=0, help="number of questions of ARC-Easy; default: none")
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        help="file of results that is read and extended; default: that of the documentation",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("build/quality"),
        help="folder of weights that are used again; default: build/quality",
    )
    parser.add_argument(
        "--cores", type=positive, default=os.cpu_count(), help="number of experiments at a time; default: all cores"
    )
    parser.add_argument("--plots", type=Path, help="folder for plots of the studies; default: none")
    parser.add_argument("--seconds", type=Path, default=SECONDS, help="results of benchmarks.step, for the plots")
    parser.add_argument("--any-code", action="store_true", help="use results of other versions of the code too")
    parser.add_argument(
        "--table", action="store_true", help="run nothing; print the results of this code, with --any-code of all code"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
