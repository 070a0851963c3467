"""A few jobs with a fault each. `make faults` runs hundreds."""

from pathlib import Path

import pytest

from tests.faults import faults
from tests.faults.__main__ import run_jobs
from tests.faults.drill import Drill

SEED = 39
"""With this seed, each job gets another fault, in the first three quarters of its time."""


@pytest.mark.timeout(900)
def test_jobs_end_in_the_same_bits_whatever_fails(tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]) -> None:
    kinds = (faults.kill_worker, faults.kill_child, faults.cut_upload, faults.restart_postgres)
    with Drill(tmp_path, tiny_folder.parent, tiny_texts[:40]) as drill:
        outcomes = list(run_jobs(drill, 4, SEED, kinds, tmp_path / "results.jsonl"))
        assert {outcome.fault for outcome in outcomes} == {kind.__name__ for kind in (faults.none, *kinds)}
        assert all(outcome.good for outcome in outcomes), outcomes
        assert any(outcome.hit and outcome.attempts > 1 for outcome in outcomes), outcomes
        assert drill.wait(lambda: not drill.unreferenced(), 60), drill.unreferenced()
