"""Progress and results as they are shown in a terminal."""

import io
from itertools import pairwise

import pytest
from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import TextColumn

from seft.checkpoint.counts import Count, Sparsity
from seft.console import BarReporter, LineReporter, describe_model
from seft.report import Evolved, Phase, Progress, Reporter, Step, Unseen

STEPS = 200


def train(report: Reporter) -> None:
    for step in range(1, STEPS + 1):
        report(Step(step, 3.25, 1e-3, 1234.0))
        if step == 60:
            report(Evolved(step, 7, 7, 5, 3, 0.6, undone=True, layers={}))
        report(Progress(Phase.TRAINING, step, STEPS))
    report(Progress(Phase.EVALUATING, 1, 1))


def test_a_file_gets_a_line_at_each_tenth_and_each_event(capsys: pytest.CaptureFixture[str]) -> None:
    train(LineReporter())
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if "training" in line]) == 11
    assert "training 100/200  about 1 s left  loss 3.250  rate 1.0e-03  1,234 tokens/s" in "\n".join(lines)
    assert "training 200/200  loss 3.250  rate 1.0e-03  1,234 tokens/s" in lines[-2]
    assert any(
        "step 60  7 grown, 5 of them from zero; 3 pruned; 60.00% zeros; undone, because it made the held-out loss worse"
        in line
        for line in lines
    )
    assert "loss" not in lines[-1]


def test_a_slow_phase_gets_lines_between_its_tenths_with_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    report = LineReporter(lambda: now)
    for done in range(1, 101):
        report(Progress(Phase.WRITING, done, 1000))
        now += 6.0
    lines = [line.strip().split("  ") for line in capsys.readouterr().err.splitlines()]
    times = [float(line[0].removesuffix(" s")) for line in lines]
    assert max(later - earlier for earlier, later in pairwise(times)) == 12
    assert lines[-1][1:] == ["writing 10 %", "about 1 h 30 min left"]


def test_a_terminal_gets_one_bar_for_each_phase_with_the_last_figures() -> None:
    screen = io.StringIO()
    columns = [TextColumn(part) for part in ("{task.description}", "{task.fields[count]}", "{task.fields[note]}")]
    with Bars(*columns, console=Console(file=screen, width=120)) as bars:
        train(BarReporter(bars))
    assert [line.split() for line in screen.getvalue().splitlines()] == [
        ["training", "200/200", *["loss", "3.250", "rate", "1.0e-03", "1,234", "tokens/s"]],
        ["evaluating", "1/1"],
    ]


@pytest.mark.parametrize("report_to", ["lines", "bars"])
def test_experts_that_received_no_token_are_reported(report_to: str, capsys: pytest.CaptureFixture[str]) -> None:
    screen = io.StringIO()
    with Bars(console=Console(file=screen, width=120)) as bars:
        reporter = LineReporter() if report_to == "lines" else BarReporter(bars)
        reporter(Unseen(3, 12))
    assert "block 3: 12 expert matrices received no token, pruned by magnitude" in (
        screen.getvalue() + capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["model.layers.0.mlp.experts.{}.up_proj", "model.layers.0.mlp.experts.up_proj.{}"])
def test_experts_of_one_kind_are_counted_together(name: str) -> None:
    half, none, total = Count(2, 4), Count(0, 4), Count(2, 8)
    layers = {name.format(number): count for number, count in enumerate((half, none))}
    text = describe_model(Sparsity(layers, total, total), None)
    assert [line.split() for line in text.splitlines()[:2]] == [["block", "up_proj"], ["0", "25.00%"]]
