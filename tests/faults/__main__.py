"""`python -m tests.faults [--jobs 200] [--seed 0] [--folder .faults]`: a random fault for each job, a table at the end.

Seeded: job i meets the same fault at the same moment of its life every time. Resumable: results are kept in the folder
line by line, and a run goes on behind the last of them.
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
from tests.faults.drill import Drill
from tests.faults.faults import Fault

TIDY_SECONDS = 60.0


@dataclass(frozen=True)
class Outcome:
    """What became of one job; `hit` says that the fault met it while it ran."""

    number: int
    fault: str
    status: str
    hit: bool
    attempts: int
    same: bool
    beside: bool
    damaged: int
    seconds: float

    @property
    def good(self) -> bool:
        return self.status == "succeeded" and self.same and not self.beside and not self.damaged


def suffer(drill: Drill, number: int, fault: Fault, moment: float, wanted: str | None) -> tuple[Outcome, str]:
    """Post a job, do the fault to it `moment` seconds after it began to run, see what becomes of it."""
    began = time.monotonic()
    job_id = drill.post(seed=0)
    drill.wait(lambda: drill.child_of(job_id))
    time.sleep(moment)
    running = drill.job(job_id).status == "running"
    hit = fault(drill, job_id) and running
    job = drill.end(job_id)
    sha256 = drill.sha256(job_id) if job["status"] == "succeeded" else ""
    outcome = Outcome(
        number=number,
        fault=fault.__name__,
        status=job["status"],
        hit=hit,
        attempts=job["attempt"],
        same=bool(sha256) and sha256 == (wanted or sha256),
        beside=drill.beside_another(job_id),
        damaged=len(drill.damaged(job_id)) if sha256 else 0,
        seconds=round(time.monotonic() - began, 1),
    )
    drill.tend()
    return outcome, sha256


def drilled(drill: Drill, jobs: int, seed: int, kinds: Sequence[Fault], results: Path) -> Iterator[Outcome]:
    """Outcomes of all jobs: those of earlier runs, then of those that are left. The first one meets no fault."""
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    wanted = lines[0]["sha256"] if lines else None
    duration = lines[0]["outcome"]["seconds"] if lines else 0.0
    yield from (Outcome(**line["outcome"]) for line in lines)
    for number in range(len(lines), jobs + 1):
        dice = random.Random(f"{seed}/{number}")
        fault = dice.choice(kinds) if number else faults.none
        outcome, sha256 = suffer(drill, number, fault, dice.random() * duration, wanted)
        if not number:
            wanted, duration = sha256, outcome.seconds * 0.8
            outcome = Outcome(**{**asdict(outcome), "seconds": duration})
        with results.open("a") as file:
            file.write(json.dumps({"outcome": asdict(outcome), "sha256": sha256}) + "\n")
        yield outcome


def table(outcomes: Sequence[Outcome]) -> Table:
    """One row for each kind of fault."""
    rows = Table(
        "fault", "jobs", "hit in mid-run", "succeeded", "same bits", "beside another", "most attempts", box=None
    )
    for name in sorted({outcome.fault for outcome in outcomes}):
        mine = [outcome for outcome in outcomes if outcome.fault == name]
        counts = (
            len(mine),
            sum(each.hit for each in mine),
            sum(each.status == "succeeded" for each in mine),
            sum(each.same for each in mine),
            sum(each.beside for each in mine),
            max(each.attempts for each in mine),
        )
        rows.add_row(name, *map(str, counts))
    return rows


def run(
    jobs: Annotated[int, typer.Option(help="Jobs that meet a fault.")] = 200,
    seed: int = 0,
    folder: Annotated[Path, typer.Option(help="Where data and results stay.")] = Path(".faults"),
    minutes: Annotated[float, typer.Option(help="Begin no further job after so many.")] = 1e9,
) -> None:
    """Run what is left of the jobs, print the table; exit status 1 when anything is not as promised."""
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
            for outcome in drilled(drill, jobs, seed, kinds, folder / "results.jsonl"):
                outcomes.append(outcome)
                console.print(outcome)
                if time.monotonic() > until:
                    break
            drill.wait(lambda: not drill.orphans(), TIDY_SECONDS)
            orphans = drill.orphans()
    finally:
        if small:
            faults.unmount(scratch)
    console.print(table(outcomes))
    if not small:
        console.print("fill_disk was left out: mounting a small disk needs root")
    if not faults.has_compiler():
        console.print("shift_clock was left out: it needs a C compiler")
    console.print(f"objects without a row: {len(orphans)} {orphans[:3]}")
    sys.exit(bool(orphans) or not all(outcome.good for outcome in outcomes))


if __name__ == "__main__":
    typer.run(run)
