"""A few jobs with a fault each. `make faults` runs hundreds."""

from pathlib import Path
from typing import Any, cast

import pytest

from core.tables import Job
from tests.faults import faults
from tests.faults.__main__ import Outcome, never_hit, run_job, run_jobs
from tests.faults.drill import STEPS, Drill

SEED = 872
"""With this seed, each job gets another fault, in the second quarter of its time."""


@pytest.mark.timeout(900)
def test_jobs_end_in_the_same_bits_whatever_fails(tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]) -> None:
    kinds = (faults.kill_worker, faults.kill_saved_child, faults.cut_upload, faults.restart_postgres)
    with Drill(tmp_path, tiny_folder.parent, tiny_texts[:40]) as drill:
        outcomes = list(run_jobs(drill, 4, SEED, kinds, tmp_path / "results.jsonl"))
        assert {outcome.fault for outcome in outcomes} == {kind.__name__ for kind in (faults.none, *kinds)}
        assert all(outcome.good for outcome in outcomes), outcomes
        assert all(outcome.hit for outcome in outcomes), outcomes
        attempts = {outcome.fault: outcome.attempts for outcome in outcomes}
        assert min(attempts["kill_worker"], attempts["kill_saved_child"]) > 1, outcomes
        assert drill.wait(lambda: not drill.unreferenced(), 60), drill.unreferenced()


class Untouched:
    """A service whose jobs succeed, and whose workers may be too slow to start them in time."""

    def __init__(self, *, started: bool) -> None:
        self.started = started

    def wait(self, condition: object) -> bool:
        return self.started

    def post(self, seed: int) -> str:
        return "job_1"

    def job(self, job_id: str) -> Job:
        return Job(status="running")

    def end(self, job_id: str) -> dict[str, Any]:
        return {"status": "succeeded", "attempt": 1}

    def sha256(self, job_id: str) -> str:
        return "0"

    def attempts_overlap(self, job_id: str) -> bool:
        return False

    def damaged(self, job_id: str) -> list[str]:
        return []

    def restarted(self, job_id: str) -> bool:
        return False

    def reported_steps(self, job_id: str) -> list[int]:
        return [*range(1, STEPS + 1)]

    def replace_workers(self) -> None:
        pass


def test_a_fault_that_hits_no_running_job_counts_as_never_hit() -> None:
    def outcome_of(fault: faults.Fault, *, started: bool = True) -> Outcome:
        return run_job(cast("Drill", Untouched(started=started)), 1, fault, 0.0, "0")[0]

    def missing(drill: Drill, job_id: str) -> bool:
        return False

    missed, late, hit = outcome_of(missing), outcome_of(faults.none, started=False), outcome_of(faults.none)
    assert [outcome.hit for outcome in (missed, late, hit)] == [False, False, True]
    assert never_hit([missed, late]) == {"missing", "none"}
    assert never_hit([missed, late, hit]) == {"missing"}
