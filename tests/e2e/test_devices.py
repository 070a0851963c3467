"""Jobs on several devices. Here the devices are processes on one CPU, which gloo connects."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from local.processes import children_of
from seft.checkpoint.facts import Record
from seft.client.responses import Job
from tests.e2e.conftest import Service
from tests.e2e.test_jobs import OUTPUT, SPEC, end, wait_for_repair
from tests.waiting import alive, wait_for

ONE: dict[str, Any] = {**SPEC, "repair": {**SPEC["repair"], "steps": 32}}
TWO: dict[str, Any] = {**ONE, "devices": 2, "output": OUTPUT}

Interrupt = Callable[[Service, str, list[int]], None]
SHARDED: dict[str, Any] = {"devices": 2, "sharded": True}
SPLIT = {**TWO, **SHARDED}
NOT_TRAINED = {name: value for name, value in TWO.items() if name != "repair"}
UNIFORM = {"allocation": "uniform"}
"""How the zeros of a split model are distributed."""


def start_worker(service: Service, devices: int) -> int:
    settings = service.backend.settings.model_copy(update={"devices": devices, "threads": devices})
    return service.workers.start(replace(service.backend, settings=settings), "worker").pid


def finish(service: Service, **spec: Any) -> Job:
    job = end(service, service.post(**spec))
    assert job["status"] == "succeeded", job
    return job


def trainers(worker: int) -> Iterator[int]:
    """Yield the processes that train the running job of a worker, in the order of their starts."""
    (launcher,) = filter(trains, children_of(worker))
    yield from filter(trains, sorted(children_of(launcher)))


def trains(process: int) -> bool:
    """Return whether a process is the launcher or one that it started, and not one that measures the device."""
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        return b"worker.training" in Path(f"/proc/{process}/cmdline").read_bytes()
    return False


def sha256(service: Service, job: Job) -> str:
    return service.client.checkpoints(job["id"])[0]["sha256"]


@pytest.mark.timeout(900)
def test_two_devices_repair_a_model_together_and_a_killed_one_changes_no_bit(service: Service, tmp_path: Path) -> None:
    start_worker(service, 1)
    waiting = service.post(**TWO)
    wait_for(lambda: "a worker with 2 devices" in str(service.client.job(waiting)["reason"]))
    worker = start_worker(service, 2)
    together = end(service, waiting)
    assert (together["status"], together["attempt"]) == ("succeeded", 1), together
    check_equal_to_one_device(service, together, tmp_path)
    check_interrupted(service, worker, TWO, [kill, pause], sha256(service, together))


@pytest.mark.timeout(900)
def test_two_devices_repair_a_model_that_is_split_over_both(service: Service) -> None:
    worker = start_worker(service, 2)
    whole, split = finish(service, **TWO, **UNIFORM), finish(service, **SPLIT)
    assert split["scores"] == pytest.approx(whole["scores"], rel=0.01)
    check_interrupted(service, worker, SPLIT, [kill], sha256(service, split))
    pruned = [finish(service, **NOT_TRAINED | spec, repair={"method": "none"}) for spec in (UNIFORM, SHARDED)]
    assert sha256(service, pruned[0]) == sha256(service, pruned[1])


def check_equal_to_one_device(service: Service, together: Job, folder: Path) -> None:
    """The zeros are those of the job on one device, and the scores are equal up to rounding."""
    alone = finish(service, **ONE)
    for name, score in alone["scores"].items():
        assert together["scores"][name] == pytest.approx(score, rel=0.01)
    weights = []
    for job in (alone, together):
        service.client.download(job["id"], folder / job["id"])
        weights.append(load_file(folder / job["id"] / "model.safetensors"))
    one, two = weights
    processes = [Record.read(folder / job["id"]).facts.repaired_on for job in (alone, together)]
    assert [each and each.processes for each in processes] == [1, 2]
    linears = [name for name in one if one[name].dim() == 2 and (one[name] == 0).float().mean() > 0.5]
    assert linears
    different = sum(int(((one[name] == 0) != (two[name] == 0)).sum()) for name in linears)
    assert different < 0.001 * sum(one[name].numel() for name in linears)
    assert alone["measured"] is not None
    assert alone["measured"]["grown_zeros"] > 0


def check_interrupted(
    service: Service, worker: int, spec: dict[str, Any], interrupts: list[Interrupt], expected: str
) -> None:
    """A job that is interrupted in mid repair resumes from a saved state each time, and ends with the same bytes."""
    job_id = service.post(**spec)
    for attempt, interrupt in enumerate(interrupts, 1):
        wait_for_repair(service, job_id, attempt)
        interrupt(service, job_id, list(trainers(worker)))
    job = end(service, job_id)
    assert (job["status"], job["attempt"]) == ("succeeded", 1 + len(interrupts)), job
    resumed = [each["data"]["step"] for each in service.client.events(job_id) if each["type"] == "attempt.resumed"]
    assert len(resumed) == len(interrupts)
    assert all(step > 0 for step in resumed)
    assert sha256(service, job) == expected


def kill(service: Service, job_id: str, processes: list[int]) -> None:
    """Kill one of the two processes. The other one ends too."""
    first, second = processes
    os.kill(second, signal.SIGKILL)
    wait_for(lambda: not alive(first))
    wait_for(lambda: "job.retried" in {each["type"] for each in service.client.events(job_id)})
    (retried,) = (each["data"] for each in service.client.events(job_id) if each["type"] == "job.retried")
    assert retried["error"]["code"] == "training_process_died"


def pause(service: Service, job_id: str, processes: list[int]) -> None:
    """Pause and resume the job. A pause ends all processes."""
    assert service.client.pause(job_id)["pausing"]
    wait_for(lambda: not any(alive(process) for process in processes))
    wait_for(lambda: service.client.job(job_id)["status"] == "paused")
    service.client.resume(job_id)
