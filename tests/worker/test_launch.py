"""How the processes of a job on two devices end. The work is scripted; the launcher and the processes are real."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.worker.launched import CAUSE, FREED
from worker.process import LOG_BYTES
from worker.protocol import Stopped


def launch(scenario: str, folder: Path) -> tuple[int, str]:
    """Run the processes of a scenario. Return the exit status and the output that a worker would keep."""
    command = [sys.executable, "-m", "tests.worker.launched", scenario, str(folder)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return ended.returncode, ended.stdout[-LOG_BYTES:].decode()


@pytest.mark.parametrize(("scenario", "cause"), [("error", f"RuntimeError: {CAUSE}"), ("kill", "(SIGKILL)")])
def test_the_output_ends_with_the_cause_if_one_process_fails_and_then_the_other(
    tmp_path: Path, scenario: str, cause: str
) -> None:
    status, output = launch(scenario, tmp_path)
    assert status == 1
    report = output.partition("Root Cause")[2]
    assert "rank      : 1" in report
    assert cause in report
    assert "Connection closed by peer" not in report


@pytest.mark.parametrize("scenario", ["stop before replica", "stop after replica"])
def test_a_replica_that_has_finished_ends_when_the_job_is_stopped(tmp_path: Path, scenario: str) -> None:
    status, output = launch(scenario, tmp_path)
    assert (status, "forcefully exiting" in output) == (0, False)
    assert str(Stopped()) in output


def test_a_replica_that_has_finished_keeps_no_model_in_memory(tmp_path: Path) -> None:
    status, output = launch("finish", tmp_path)
    assert status == 0, output
    assert FREED in output
