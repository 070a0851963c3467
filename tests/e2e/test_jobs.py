"""Jobs from POST to a checkpoint on the caller's disk: undisturbed, killed, paused, stopped and cancelled.

All processes and the training of the tiny model are real.
"""

import json
import os
import signal
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import seft
from local.processes import children_of
from seft.checkpoint.sparsity import of_folder
from seft.client.responses import Job
from tests.e2e.collector import Span
from tests.e2e.conftest import Service
from tests.waiting import alive, wait_for

SPEC: dict[str, Any] = {
    "prune": {"method": "sparsegpt", "calibration": {"samples": 8, "tokens": 128}},
    "repair": {
        "steps": 60,
        "batch_tokens": 1024,
        "sequence_tokens": 128,
        "update_interval": 5,
        "density": 0.02,
        "learning_rate": 3e-3,
        "retain_tokens": 1024,
    },
    "evaluate": {"windows": 8, "tokens": 128},
    "seed": 3,
}
OUTPUT = {"formats": ["dense", "compact"]}
LONG: dict[str, Any] = {**SPEC, "repair": {**SPEC["repair"], "steps": 100_000}}
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def end(service: Service, job_id: str) -> Job:
    *_, job = service.client.watch(job_id)
    return job


def wait_for_repair(service: Service, job_id: str, attempt: int = 1) -> None:
    """Return when this attempt is training and has saved a state after the first step.

    Reads the database, because frequent requests to the API would slow the training down.
    """

    def in_mid_repair() -> bool:
        saved = [event for event in service.backend.event_rows(job_id) if event.type == "state.saved"]
        job = service.backend.job(job_id)
        assert job.status in {"queued", "running"}, job.error
        return job.phase == "training" and any(each.attempt == attempt and each.data["step"] > 0 for each in saved)

    wait_for(in_mid_repair, pause=0.05)


def zeros_of_linears(file: Path) -> tuple[int, int]:
    """Count the zeros and the weights of the linears in a safetensors file, without using the library."""
    zeros = weights = 0
    with safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            if name.split(".")[-2] in LINEARS:
                weight = tensors.get_tensor(name)
                assert weight.dtype == torch.bfloat16
                zeros, weights = zeros + int((weight == 0).sum()), weights + weight.numel()
    return zeros, weights


@pytest.mark.timeout(900)
def test_jobs_from_post_to_download(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = service.start_worker()
    undisturbed = service.post(**SPEC, output=OUTPUT)
    states = list(service.client.watch(undisturbed))
    check_times(states)
    check_result(service, states[-1], tmp_path / "checkpoint")
    check_compact(service, undisturbed, tmp_path / "checkpoint", monkeypatch)
    check_log(service, undisturbed)
    check_trace(service, undisturbed)
    check_stopped(service)
    check_cancelled(service, worker)
    check_killed_and_paused(service, worker, service.client.checkpoints(undisturbed)[0]["sha256"])


def check_result(service: Service, job: Job, folder: Path) -> None:
    """The scores are plausible, and the downloaded file has the requested and the reported sparsity."""
    assert (job["status"], job["attempt"], job["progress"]) == ("succeeded", 1, 1.0), job
    assert job["scores"]["dense"] < job["scores"]["repaired"] < job["scores"]["pruned"]
    service.client.download(job["id"], folder)
    zeros, weights = zeros_of_linears(folder / "model.safetensors")
    assert job["measured"] is not None
    assert job["measured"]["linears"] == {"zeros": zeros, "weights": weights, "share": zeros / weights}
    assert abs(zeros / weights - 0.6) < 0.01
    assert of_folder(folder).linears.zeros == zeros
    assert job["measured"]["grown_zeros"] > 0
    assert [row["step"] for row in service.client.metrics(job["id"])] == list(range(1, 61))


def check_compact(service: Service, job_id: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compact file is loaded from object storage and from its presigned link: the bits of the dense model."""
    settings = service.backend.settings
    environment = {"ENDPOINT_URL": settings.s3_endpoint, "DEFAULT_REGION": settings.s3_region}
    environment |= {"ACCESS_KEY_ID": settings.s3_access_key.get_secret_value()}
    environment |= {"SECRET_ACCESS_KEY": settings.s3_secret_key.get_secret_value()}
    for name, value in environment.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    (key,) = (key for key in service.backend.storage.keys(f"jobs/{job_id}/") if key.endswith("/model.seft"))
    (file,) = (each for each in service.client.checkpoints(job_id)[0]["files"] if each["format"] == "compact")
    dense = seft.load(folder).state_dict()
    for reference in (f"s3://{settings.s3_bucket}/{key}", file["url"]):
        loaded = seft.load(reference).state_dict()
        assert loaded.keys() == dense.keys()
        for name, tensor in dense.items():
            assert torch.equal(loaded[name].view(torch.int16), tensor.view(torch.int16)), name
    assert (
        sum(path.stat().st_size for path in folder.glob("*.safetensors")) > 1.5 * (folder / "model.seft").stat().st_size
    )


def check_times(states: list[Job]) -> None:
    """A job says when it will end while it trains, and only while it runs. The time is never in the past."""
    known = [state for state in states if state["estimated_finish"] is not None]
    assert "training" in {state["phase"] for state in known}
    assert {state["status"] for state in known} == {"running"}
    for state in known:
        assert datetime.fromisoformat(str(state["estimated_finish"])) >= datetime.fromisoformat(state["updated_at"])


def check_log(service: Service, job_id: str) -> None:
    """Every log line of the worker about the job has the attempt, the worker, and the request that created it."""
    request = next(entry["request_id"] for entry in service.client.audit() if entry["target"] == job_id)
    lines = [json.loads(line) for line in service.workers.log.read_text().splitlines()]
    job_lines = [line for line in lines if line.get("job") == job_id]
    assert {"attempt.started", "attempt.succeeded"} <= {line["event"] for line in job_lines}
    (worker,) = {name for _, name in service.backend.claims()}
    assert {(line["attempt"], line["worker"], line["request_id"]) for line in job_lines} == {(1, worker, request)}


def check_trace(service: Service, job_id: str) -> None:
    """One trace covers the request, the attempt and the publishing, in two processes."""

    def attempts() -> list[Span]:
        return [span for span in service.collector.spans if span.attributes.get("seft.job") == job_id]

    wait_for(attempts)
    (attempt,) = attempts()
    spans = {span.id: span for span in service.collector.spans if span.trace == attempt.trace}
    below = {(span.process, span.name) for span in spans.values() if span.parent == attempt.id}
    phases = ("loading", "evaluating", "writing", "pruning", "training", "exporting")
    assert below == {
        *(("seft-worker", phase) for phase in phases),
        *(("seft-worker", name) for name in ("claim", "uploading", "publish")),
    }
    assert attempt.attributes["seft.outcome"] == "attempt.succeeded"
    top = attempt
    while top.parent:
        top = spans[top.parent]
    assert (top.process, top.name) == ("seft-api", "POST /jobs")


def check_killed_and_paused(service: Service, worker: int, sha256: str) -> None:
    """A job whose worker is killed, and that is paused at another one, ends with the bytes of an undisturbed one."""
    job_id = service.post(**SPEC, output=OUTPUT)
    wait_for_repair(service, job_id)
    family = children_of(worker)
    assert family
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: not any(alive(process) for process in family))
    pause(service, job_id, service.start_worker())
    assert service.client.resume(job_id)["status"] in {"queued", "running"}
    job = end(service, job_id)
    assert (job["status"], job["attempt"]) == ("succeeded", 3), job
    assert service.client.checkpoints(job_id)[0]["sha256"] == sha256
    events = list(service.client.events(job_id))
    assert [each["data"]["step"] for each in events if each["type"] == "topology.evolved"] == [1, *range(5, 46, 5)]
    assert all(each["data"]["step"] > 0 for each in events if each["type"] == "attempt.resumed")
    types = [event["type"] for event in events]
    assert [kind for kind in types if kind.startswith(("job.", "attempt."))] == [
        "job.created",
        "job.claimed",
        "job.lost",
        "job.claimed",
        "attempt.resumed",
        "job.pausing",
        "job.released",
        "job.paused",
        "job.resumed",
        "job.claimed",
        "attempt.resumed",
        "job.succeeded",
    ]
    attempts = {key.split("/")[2] for key in service.backend.storage.keys(f"jobs/{job_id}/")}
    assert attempts == {"3"}


def pause(service: Service, job_id: str, worker: int) -> None:
    """Pause a job during repair in its second attempt. The training process ends soon."""
    wait_for_repair(service, job_id, attempt=2)
    family = children_of(worker)
    assert family
    assert service.client.pause(job_id)["pausing"]
    wait_for(lambda: not any(alive(process) for process in family))
    wait_for(lambda: service.client.job(job_id)["status"] == "paused")


def check_stopped(service: Service) -> None:
    """A stop during repair publishes the current weights."""
    job_id = service.post(**LONG)
    wait_for_repair(service, job_id)
    assert service.client.stop(job_id)["stopping"]
    job = end(service, job_id)
    assert (job["status"], job["attempt"]) == ("succeeded", 1), job
    assert 0 < job["step"] < 100_000
    assert service.client.checkpoints(job_id)[0]["step"] == job["step"]


def check_cancelled(service: Service, worker: int) -> None:
    """A cancel during repair ends the training process soon and leaves no object in storage."""
    job_id = service.post(**LONG)
    wait_for_repair(service, job_id)
    family = children_of(worker)
    assert family
    assert service.client.cancel(job_id)["status"] == "cancelled"
    wait_for(lambda: not any(alive(process) for process in family))
    wait_for(lambda: not service.backend.storage.keys(f"jobs/{job_id}/"))
    assert alive(worker)
