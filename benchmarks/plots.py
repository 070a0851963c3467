"""Plots of a study: perplexity against steps, tokens and seconds of training, and at the end against memory."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.cells import JUDGED, Figures
from benchmarks.turns import ratio_to_first

AXES = {"step": "optimizer steps", "tokens": "training tokens", "seconds": "seconds of training"}


def plot(study: dict[str, Figures], name: str, folder: Path) -> list[Path]:
    """Write the plots of a study as SVG files, and return their paths. `study` has the figures by label.

    The same figures give the same files.
    """
    mpl.rcParams |= {"svg.hashsalt": name, "svg.fonttype": "none"}
    folder.mkdir(parents=True, exist_ok=True)
    curves = {label: figures for label, figures in study.items() if "curve" in figures}
    paths = [_save(_curves(curves, axis), folder / f"{name}-{axis}.svg") for axis in AXES if curves]
    return [*paths, _save(_memory(study), folder / f"{name}-memory.svg")]


def plot_recovery(curves: Mapping[str, Sequence[tuple[float, float]]], name: str, folder: Path) -> Path:
    """Write the plot of the recovered part over seconds of training, and return its path."""
    mpl.rcParams |= {"svg.hashsalt": name, "svg.fonttype": "none"}
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    plane: Any = figure.add_subplot()
    for label, points in curves.items():
        plane.plot([x for x, _ in points], [100 * y for _, y in points], marker=".", label=label)
    plane.set(xlabel="seconds of training", ylabel="recovered against the ceiling, %")
    plane.grid(alpha=0.3)
    plane.legend(fontsize="small", loc="lower right")
    return _save(figure, folder / f"{name}-recovered.svg")


def plot_steps(runs: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Write a plot of `benchmarks.step`: seconds relative to the first side, and peak memory.

    Both are plotted by the tokens of a step for the density of the first run, and by the density for its shape.
    """
    mpl.rcParams |= {"svg.hashsalt": path.name, "svg.fonttype": "none"}
    figure = Figure(figsize=(10, 8), layout="constrained")
    base = next(iter(runs[0]["seconds"]))
    axes = {
        "tokens in a step": {
            math.prod(map(int, run["shape"].split("x"))): run
            for run in reversed(runs)
            if run["density"] == runs[0]["density"]
        },
        "trained fraction of the weights": {run["density"]: run for run in runs if run["shape"] == runs[0]["shape"]},
    }
    for (column, (axis, points)), (row, label) in itertools.product(
        enumerate(axes.items()), enumerate((f"seconds / {base}", "peak memory, MB"))
    ):
        plane: Any = figure.add_subplot(2, 2, 2 * row + column + 1)
        for side in runs[0]["seconds"]:
            measured = {x: run for x, run in sorted(points.items()) if side in run["seconds"]}
            if len(measured) > 1:
                values = [
                    (ratio_to_first(run["seconds"], side), run["peak_bytes"][side] / 1e6)[row]
                    for run in measured.values()
                ]
                plane.plot([*measured], values, marker=".", label=side)
        plane.set(xlabel=axis, ylabel=label, xscale="log")
        plane.set_xticks([*points], [f"{x:g}" for x in points])
        plane.minorticks_off()
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    return _save(figure, path)


def _curves(study: dict[str, Figures], axis: str) -> Figure:
    figure = Figure(figsize=(10, 4), layout="constrained")
    for place, text in enumerate(JUDGED):
        plane = figure.add_subplot(1, len(JUDGED), place + 1)
        for label, figures in study.items():
            points = [_point(each, axis, figures) for each in figures["curve"]]
            plane.plot(points, [each[text] for each in figures["curve"]], marker=".", label=label)
        plane.set(xlabel=AXES[axis], ylabel="perplexity", title=text, yscale="log")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    return figure


def _point(point: dict[str, float], axis: str, figures: Figures) -> float:
    if axis == "tokens":
        share: float = point["step"] / figures["curve"][-1]["step"]
        return share * float(figures["tokens"])
    return float(point[axis])


def _memory(study: dict[str, Figures]) -> Figure:
    figure = Figure(figsize=(10, 4), layout="constrained")
    for place, text in enumerate(JUDGED):
        plane: Any = figure.add_subplot(1, len(JUDGED), place + 1)
        for label, figures in study.items():
            plane.plot(figures["peak_bytes"] / 1e6, figures[text], "o")
            plane.annotate(label, (figures["peak_bytes"] / 1e6, figures[text]), fontsize="x-small")
        plane.set(xlabel="peak memory of the process, MB", ylabel="perplexity", title=text, yscale="log")
    return figure


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    return path
