"""Terminal output of the commands: progress on stderr, and results as text.

Progress is shown as bars on a terminal, and as lines if stderr is a file or a pipe.
"""

import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from seft.report import (
    Evaluated,
    Evolved,
    Phase,
    Progress,
    Reconstructed,
    Report,
    Reporter,
    Step,
    Unseen,
    ZerosFound,
    about,
)

if TYPE_CHECKING:
    from seft.checkpoint.counts import Count, Sparsity
    from seft.checkpoint.facts import Record

LINE_SECONDS = 10.0
"""Seconds after which a report of progress gets a line, if no line was written for another reason."""


@contextmanager
def progress_reporter() -> Iterator[Reporter]:
    """Yield a reporter that shows bars if stderr is a terminal, and writes lines if not."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield LineReporter()
        return
    texts = [TextColumn(f"{{task.{part}}}") for part in ("description:<10", "fields[count]", "fields[note]")]
    bars = Bars(texts[0], BarColumn(), texts[1], TimeRemainingColumn(), texts[2], console=console)
    try:
        yield BarReporter(bars)
    finally:
        bars.stop()


class BarReporter:
    """Shows one progress bar per phase, with the loss and speed of the last step.

    The first report starts the thread that draws the bars. Before it, the process can be copied safely.
    """

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[Phase, TaskID] = {}
        self._note = ""

    def __call__(self, report: Report) -> None:
        """Update the bars with one report."""
        self._bars.start()
        match report:
            case Progress(phase, done, total):
                if phase not in self._tasks:
                    self._tasks[phase] = self._bars.add_task(phase, total=total, count="", note="")
                note = self._note if phase is Phase.TRAINING else ""
                self._bars.update(self._tasks[phase], completed=done, count=_count(report), note=note)
            case Step() | Evolved():
                self._note = describe(report)
            case ZerosFound() | Unseen() | Reconstructed() | Evaluated():
                self._bars.console.print(describe(report), highlight=False)
            case _:
                assert_never(report)


class LineReporter:
    """Writes a line at every tenth of a phase, or after some seconds, and for all other reports but single steps.

    A line of progress has the time that the rest of the phase will take, if the phase goes on at the same speed.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._tenths: dict[Phase, int] = {}
        self._firsts: dict[Phase, tuple[float, int]] = {}
        """Time and `done` of the first report of a phase."""
        self._note = ""
        self._clock = clock
        self._start = self._last = clock()

    def __call__(self, report: Report) -> None:
        """Write the line for one report, if it gets one."""
        match report:
            case Progress(phase, done, total):
                tenth = 10 * done // total
                left = self._left(report)
                if self._tenths.get(phase) != tenth or self._clock() - self._last > LINE_SECONDS:
                    self._tenths[phase] = tenth
                    self._write(f"{phase} {_count(report)}", left, self._note if phase is Phase.TRAINING else "")
            case Step():
                self._note = describe(report)
            case Evolved():
                self._write(f"step {report.step}", describe(report))
            case ZerosFound() | Unseen() | Reconstructed() | Evaluated():
                self._write(describe(report))
            case _:
                assert_never(report)

    def _left(self, report: Progress) -> str:
        """Return the rest of the time of a phase in words. Empty if the phase has just begun or has ended."""
        since, before = self._firsts.setdefault(report.phase, (self._clock(), report.done))
        if not before < report.done < report.total:
            return ""
        seconds = (self._clock() - since) / (report.done - before)
        return f"{about(seconds * (report.total - report.done))} left"

    def _write(self, *parts: str) -> None:
        self._last = self._clock()
        sys.stderr.write("  ".join([f"{self._last - self._start:7.1f} s", *filter(None, parts)]) + "\n")


def _count(progress: Progress) -> str:
    """Return how much is done: a percentage of written text, whose units mean nothing to a user, else `3/24`."""
    if progress.phase is Phase.WRITING:
        return f"{100 * progress.done // progress.total} %"
    return f"{progress.done}/{progress.total}"


def describe(report: ZerosFound | Unseen | Reconstructed | Step | Evolved | Evaluated) -> str:
    """Return a report as one short line."""
    match report:
        case ZerosFound():
            of_one = f"from {report.lowest:.1%} to {report.highest:.1%} of one"
            counted = f"found {report.sparsity:.2%} zeros in the {report.linears} linear layers, {of_one}"
            dense = f", {report.dense} layers without zeros" if report.dense else ""
            pattern = "no N:M pattern" if report.pattern == "unstructured" else f"the pattern {report.pattern}"
            return f"{counted}{dense}; {pattern}"
        case Unseen():
            return f"block {report.block}: {report.matrices:,} expert matrices received no token, pruned by magnitude"
        case Reconstructed():
            return f"block {report.block}, {report.part}: error {report.before:.2%} before, {report.after:.2%} after"
        case Step():
            return f"loss {report.loss:.3f}  rate {report.learning_rate:.1e}  {report.tokens_per_second:,.0f} tokens/s"
        case Evolved():
            undone = "; undone, because it made the held-out loss worse" if report.undone else ""
            counts = f"{report.grown:,} grown, {report.reactivated:,} of them from zero; {report.pruned:,} pruned"
            return f"{counts}; {report.sparsity:.2%} zeros{undone}"
        case Evaluated():
            return f"step {report.step}: held-out loss {report.held_out_loss:.4f}"
        case _:
            assert_never(report)


def describe_checkpoint(out: Path, record: "Record") -> str:
    """Return a short text about a new checkpoint: its folder `out`, its sparsity, and what repair did or would do."""
    lines = [f"Wrote {out} and verified it in a separate process.", describe_sparsity(record.sparsity)]
    if record.facts.repair:
        lines.append(f"{record.facts.grown_zeros:,} weights that pruning set to zero are nonzero now.")
    else:
        lines.append(f"The model is pruned and not repaired. `seft repair {out} --data FILE --out NEW` trains it.")
    return "\n".join(lines)


def describe_sparsity(counted: "Sparsity") -> str:
    """Return one line with the sparsity of the pruned linears and of the whole model."""
    linears, model = counted.linears, counted.model
    return (
        f"{linears.share:.2%} of the {linears.weights:,} weights in the linear layers are zero,"
        f" {model.share:.2%} of all {model.weights:,} weights."
    )


def describe_model(counted: "Sparsity", record: "Record | None") -> str:
    """Return the sparsity per decoder block and kind of linear. With `record`, add how the model was made."""
    parts = [_table(counted), describe_sparsity(counted)]
    if record:
        facts = record.facts
        parts.append(f"{facts.base.reference}, pruned to {facts.prune.sparsity:.0%} by {facts.pruned_by}")
        if facts.repair:
            parts.append(
                f"repaired by {facts.repair.method} in {facts.repair.steps} steps, {facts.grown_zeros:,} zeros grown"
            )
        parts += [f"perplexity {name} {score:.2f}" for name, score in facts.scores.items()]
    return "\n".join(parts)


def _table(counted: "Sparsity") -> str:
    """Return a table with one row per block.

    Linears whose names differ only in a number, as experts do, share a column.
    """
    blocks: dict[str, dict[str, Count]] = {}
    for name, count in counted.layers.items():
        parts = name.split(".")
        block = next(part for part in parts if part.isdecimal())
        kind = next(part for part in reversed(parts) if not part.isdecimal())
        row = blocks.setdefault(block, {})
        row[kind] = row[kind] + count if kind in row else count
    kinds = list(dict.fromkeys(kind for row in blocks.values() for kind in row))
    table = Table("block", *kinds, box=None, pad_edge=False)
    for block, row in blocks.items():
        table.add_row(block, *(f"{row[kind].share:.2%}" if kind in row else "" for kind in kinds))
    text = io.StringIO()
    Console(file=text, width=16 * (len(kinds) + 1)).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
