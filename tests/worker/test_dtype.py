"""Jobs whose weights are bfloat16 while they run."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.capability import CPU, Capability
from core.states import Status
from core.tables import Job
from seft.checkpoint.facts import Record
from tests.claims import UNLIMITED
from tests.waiting import wait_for
from tests.worker.conftest import Backend, Running
from tests.worker.test_pipeline import SPEC, Run, _restore_torch_settings  # noqa: F401
from worker.attempt import Supervisor
from worker.protocol import RESULT


def run(backend: Backend, *capabilities: Capability, **spec: Any) -> Job:
    """Run a job on a worker of each capability. Each attempt but the last one stops after its first state."""
    settings = backend.settings.model_copy(update={"checkpoint_seconds": 0.1, "threads": 1, "device": CPU})
    job_id = backend.add_job(spec.pop("data"), **spec)
    for number, capability in enumerate(capabilities, 1):
        draining = threading.Event()
        attempt = Supervisor(backend.claim(capability), backend.sessions, backend.storage, settings, draining=draining)
        running = Running(attempt)
        with running:
            if number < len(capabilities):
                wait_for(lambda: (backend.job(job_id).resume or {"step": 0})["step"] > 0)
                draining.set()
            running.thread.join()
    return backend.job(job_id)


def test_auto_gives_the_bytes_of_the_data_type_of_the_first_worker(
    backend: Backend, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    settings = backend.settings.model_copy(update={"model_roots": [tiny_folder.parent]})
    backend = Backend(settings, backend.sessions, backend.storage)
    fields = {name: SPEC[name] for name in ("prune", "evaluate")}
    fields |= {"data": backend.add_dataset(tiny_texts[:20]), "repair": {**SPEC["repair"], "steps": 40}}
    older, newer = UNLIMITED, replace(UNLIMITED, bfloat16=True)
    asked = run(backend, newer, dtype="bfloat16", **fields)
    auto = run(backend, newer, older, dtype="auto", **fields)
    assert (asked.status, asked.attempt, asked.dtype) == (Status.SUCCEEDED, 1, "bfloat16")
    assert (auto.status, auto.attempt, auto.dtype) == (Status.SUCCEEDED, 2, "bfloat16")
    assert backend.checkpoint(auto.id).sha256 == backend.checkpoint(asked.id).sha256


@pytest.mark.parametrize("repair", [{}, {"density": "all", "retain": "written", "micro_batch": 2}], ids=["seft", "all"])
def test_a_job_in_bfloat16_resumes_to_the_same_bytes_and_scores_like_one_in_float32(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str], repair: dict[str, Any]
) -> None:
    spec = {"repair": {**SPEC["repair"], **repair}}
    half: dict[str, Any] = {**spec, "dtype": "bfloat16"}
    single, whole, first, second = (
        Run(tmp_path / name, tiny_folder.parent, tiny_texts[:20], **values)
        for name, values in (("single", spec), ("whole", half), ("first", half), ("second", half))
    )
    single.run()
    whole.run()
    first.run_until(4)
    assert second.resume_from(first, 4).run().manifest() == whole.manifest()
    facts = Record.read(whole.folder / RESULT).facts
    assert facts.pruned_on
    assert facts.repaired_on
    assert (facts.pruned_on.dtype, facts.repaired_on.dtype) == ("bfloat16", "bfloat16")
    # The model that writes the retained text draws other tokens in another data type.
    expected = Record.read(single.folder / RESULT).facts.scores
    for name in ("dense", "pruned", "repaired"):
        assert facts.scores[name] == pytest.approx(expected[name], rel=0.02)
