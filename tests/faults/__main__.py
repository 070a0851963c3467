"""`python -m tests.faults [--jobs 200] [--seed 0] [--folder .faults]`: inject a random fault into each job.

Prints a table at the end. Seeded: job i gets the same fault at the same time in every run. Resumable: results are
appended to a file in the folder, and the next run continues after the last one.
"""

import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tests.faults import faults
from tests.faults.drill import STEPS, Drill
from tests.faults.faults import Fault

CLEANUP_SECONDS = 60.0


@dataclass(frozen=True)
class Outcome:
    """The outcome of one job."""

    number: int
    fault: str
    status: str
    hit: bool
    """Whether the fault happened while the job was running."""
    attempts: int
    same: bool
    """Whether the checkpoint equals that of the job without a fault."""
    overlapping: bool
    """Whether two attempts of the job ran at the same time."""
    damaged: int
    """Number of files of the checkpoint whose stored bytes do not match their hash."""
    restarted: bool
    """Whether a saved state was lost or refused, so that the job started again at step 0."""
    reported: bool
    """Whether the metrics of each step were written."""
    seconds: float
    """Time from the start of its training process to its end."""

    @property
    def good(self) -> bool:
        """True if the job was neither lost nor run twice nor changed. A fault that missed it proves nothing."""
        kept = self.same and self.reported and not self.restarted
        return self.status == "succeeded" and kept and not self.overlapping and not self.damaged


def run_job(drill: Drill, number: int, fault: Fault, delay: float, expected: str | None) -> tuple[Outcome, str]:
    """Create a job, inject the fault `delay` seconds after it started, and wait for its end.

    Return its outcome and the hash of its checkpoint, which is compared with `expected`.
    """
    job_id = drill.post(seed=0)
    started = drill.wait(lambda: drill.child_of(job_id))
    began = time.monotonic()
    time.sleep(delay)
    running = started and drill.job(job_id).status == "running"
    hit = fault(drill, job_id) and running
    job = drill.end(job_id)
    sha256 = drill.sha256(job_id) if job["status"] == "succeeded" else ""
    outcome = Outcome(
        number=number,
        fault=fault.__name__,
        status=job["status"],
        hit=hit,
        attempts=job["attempt"],
        same=bool(sha256) and sha256 == (expected or sha256),
        overlapping=drill.attempts_overlap(job_id),
        damaged=len(drill.damaged(job_id)) if sha256 else 0,
        restarted=drill.restarted(job_id),
        reported=drill.reported_steps(job_id) == list(range(1, STEPS + 1)),
        seconds=round(time.monotonic() - began, 1),
    )
    drill.replace_workers()
    return outcome, sha256


def run_jobs(drill: Drill, jobs: int, seed: int, kinds: Sequence[Fault], results: Path) -> Iterator[Outcome]:
    """Yield the outcomes of earlier runs, then run the remaining jobs. The first job has no fault."""
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    expected = lines[0]["sha256"] if lines else None
    duration = lines[0]["outcome"]["seconds"] if lines else 0.0
    yield from (Outcome(**line["outcome"]) for line in lines)
    for number in range(len(lines), jobs + 1):
        rng = random.Random(f"{seed}/{number}")
        fault = rng.choice(kinds) if number else faults.none
        outcome, sha256 = run_job(drill, number, fault, rng.random() * duration, expected)
        if not number:
            expected, duration = sha256, outcome.seconds * 0.8
            outcome = Outcome(**{**asdict(outcome), "seconds": duration})
        with results.open("a") as file:
            file.write(json.dumps({"outcome": asdict(outcome), "sha256": sha256}) + "\n")
        yield outcome


def never_hit(outcomes: Sequence[Outcome]) -> set[str]:
    """Return the kinds of faults that happened to no running job, so that nothing is known about them."""
    return {outcome.fault for outcome in outcomes} - {outcome.fault for outcome in outcomes if outcome.hit}


def table(outcomes: Sequence[Outcome]) -> Table:
    """Return a table with one row per kind of fault."""
    rows = Table(
        "fault", "jobs", "hit while running", "succeeded", "same bits", "overlapping", "most attempts", box=None
    )
    for name in sorted({outcome.fault for outcome in outcomes}):
        mine = [outcome for outcome in outcomes if outcome.fault == name]
        counts = (
            len(mine),
            sum(each.hit for each in mine),
            sum(each.status == "succeeded" for each in mine),
            sum(each.same for each in mine),
            sum(each.overlapping for each in mine),
            max(each.attempts for each in mine),
        )
        rows.add_row(name, *map(str, counts))
    return rows


def run(
    jobs: Annotated[int, typer.Option(help="Number of jobs with a fault.")] = 200,
    seed: int = 0,
    folder: Annotated[Path, typer.Option(help="Folder for data and results.")] = Path(".faults"),
    minutes: Annotated[float, typer.Option(help="Start no more jobs after this many minutes.")] = 1e9,
) -> None:
    """Run the remaining jobs and print the table.

    The exit status is 1 if a job was lost, run twice or changed, or if a kind of fault hit no running job.
    """
    from tests.tiny import tiny_texts, train_tiny

    console, until = Console(), time.monotonic() + 60 * minutes
    model, scratch = folder / "models" / "tiny", (folder / "scratch").resolve()
    if not model.exists():
        train_tiny(model)
    kinds, small = list(faults.ALWAYS), faults.mount_small_disk(scratch)
    kinds += [faults.fill_disk] if small else []
    kinds += [faults.shift_clock] if faults.has_compiler() else []
    outcomes: list[Outcome] = []
    try:
        with Drill(folder, model.parent.resolve(), tiny_texts()[:40], scratch) as drill:
            for outcome in run_jobs(drill, jobs, seed, kinds, folder / "results.jsonl"):
                outcomes.append(outcome)
                console.print(outcome)
                if time.monotonic() > until:
                    break
            drill.wait(lambda: not drill.unreferenced(), CLEANUP_SECONDS)
            unreferenced = drill.unreferenced()
    finally:
        if small:
            faults.unmount(scratch)
    console.print(table(outcomes))
    if not small:
        console.print("fill_disk was skipped: mounting a small disk needs root")
    if not faults.has_compiler():
        console.print("shift_clock was skipped: it needs a C compiler")
    console.print(f"objects without a row: {len(unreferenced)} {unreferenced[:3]}")
    console.print(f"faults that hit no running job: {', '.join(sorted(missed := never_hit(outcomes))) or 'none'}")
    sys.exit(bool(unreferenced or missed) or not all(outcome.good for outcome in outcomes))


if __name__ == "__main__":
    typer.run(run)
