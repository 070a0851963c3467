"""A job whose sparsity rises while it trains, killed in the middle. All processes are real."""

import os
import signal
from typing import Any

import pytest

from tests.e2e.conftest import Service
from tests.e2e.test_jobs import SPEC, end, wait_for_repair


def test_a_gradual_job_that_is_killed_ends_with_the_bytes_of_an_undisturbed_one(service: Service) -> None:
    repair = {**SPEC["repair"], "steps": 40, "density": "auto", "learning_rate": "auto"}
    spec = {**SPEC, "prune": {"schedule": "gradual"}, "repair": repair}
    worker = service.start_worker()
    undisturbed = service.post(**spec)
    job = end(service, undisturbed)
    assert job["status"] == "succeeded", job
    assert set(job["scores"]) == {"dense", "repaired", "dense_retained", "repaired_retained"}
    measured: Any = job["measured"]
    assert abs(measured["linears"]["share"] - 0.6) < 0.01
    killed = service.post(**spec)
    wait_for_repair(service, killed)
    os.kill(worker, signal.SIGKILL)
    service.start_worker()
    job = end(service, killed)
    assert (job["status"], job["attempt"]) == ("succeeded", 2), job
    first, second = (service.client.checkpoints(each)[0]["sha256"] for each in (undisturbed, killed))
    assert first == second
    evolved = [each["data"] for each in service.client.events(killed) if each["type"] == "topology.evolved"]
    assert [each["step"] for each in evolved] == list(range(2, 29, 2))
    assert evolved[-1]["sparsity"] == pytest.approx(measured["linears"]["share"])
