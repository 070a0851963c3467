"""The table and the plot of what a step costs."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.plots import plot_steps
from benchmarks.step import table


def run(shape: str, density: float, *, dtype: str = "bfloat16", **seconds: list[float]) -> dict[str, Any]:
    peaks = dict.fromkeys(seconds, 2_000_000_000)
    return {"dtype": dtype, "shape": shape, "density": density, "seconds": seconds, "peak_bytes": peaks}


def test_a_cell_has_the_median_and_its_ratio_to_the_first_side() -> None:
    one = run("2x512", 0.005, floor=[2.0, 9.0, 1.0], seft=[3.0, 2.5, 8.0])
    other = run("8x128", 0.005, floor=[4.0])
    assert table([one, other]).splitlines() == [
        "| side | bfloat16, 2x512 | bfloat16, 8x128 |",
        "| -- | -- | -- |",
        "| floor | 2.00 s (1.00), 2,000 MB | 4.00 s (1.00), 2,000 MB |",
        "| seft | 3.00 s (1.50), 2,000 MB |  |",
    ]


@pytest.mark.parametrize("count", [1, 4])
def test_the_same_runs_give_the_same_plot(tmp_path: Path, count: int) -> None:
    settings = [("2x512", 0.005), ("8x128", 0.005), ("1x128", 0.005), ("2x512", 0.05)][:count]
    runs = [run(shape, density, floor=[2.0], seft=[3.0]) for shape, density in settings]
    first, second = (plot_steps(runs, tmp_path / str(each) / "steps.svg").read_bytes() for each in range(2))
    assert first == second
    assert (b"seft" in first) == (count > 1), "a line needs two points"
