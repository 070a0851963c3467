"""Running out of memory: what counts as it, and the advice to the user."""

import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from core import ids
from core.specs import JobSpec
from core.states import Phase
from seft.errors import NO_DEVICE_MEMORY
from tests.worker.conftest import Backend, supervisor
from tests.worker.test_child import write_job
from tests.worker.test_pipeline import Run, _restore_torch_settings  # noqa: F401
from worker import memory, training
from worker.failures import Failures
from worker.format_store import FormatStore
from worker.pipeline import Pipeline
from worker.protocol import Failed, Message, Progressed, Task

RETAIN: dict[str, Any] = {"repair": {"retain": "dataset", "retain_dataset": ids.new("file"), "sequence_tokens": 512}}

GRADUAL: dict[str, Any] = {"prune": {"schedule": "gradual"}, "repair": {"density": "all"}}


@pytest.mark.parametrize(("more", "advised"), [({}, True), (GRADUAL, False)])
def test_calibration_is_advised_only_to_a_job_that_reads_calibration_text(more: dict[str, Any], advised: bool) -> None:
    spec = JobSpec.model_validate({"model": "tiny", "dataset": ids.new("file"), "sparsity": 0.6, **more})
    advice = memory.advice(spec, Phase.EVALUATING, None)
    assert "evaluate.tokens to 512, or run the job on a larger device" in advice
    assert ("prune.calibration.tokens" in advice) is advised


@pytest.mark.parametrize("phase", [Phase.LOADING, Phase.EXPORTING])
def test_no_length_of_a_sequence_is_advised_where_the_model_alone_needs_the_memory(phase: Phase) -> None:
    spec = JobSpec.model_validate({"model": "tiny", "dataset": ids.new("file"), "sparsity": 0.6})
    assert "tokens" not in memory.advice(spec, phase, None)
    formats = {"output": {"formats": ["dense", "gguf_q8_0"]}}
    advice = memory.advice(JobSpec.model_validate({**spec.model_dump(mode="json"), **formats}), phase, None)
    assert ("output.formats" in advice) is (phase is Phase.EXPORTING)


@pytest.mark.parametrize(("more", "advised"), [({}, "Set repair.retain to none"), (RETAIN, "sequence_tokens to 256")])
def test_a_dataset_to_retain_is_read_in_shorter_sequences_and_text_is_not_written(
    more: dict[str, Any], advised: str
) -> None:
    spec = JobSpec.model_validate({"model": "tiny", "dataset": ids.new("file"), "sparsity": 0.6, **more})
    assert advised in memory.advice(spec, Phase.WRITING, None)


def test_after_running_out_of_memory_every_device_gets_one_sequence() -> None:
    repair: dict[str, Any] = {"batch_tokens": 4096, "sequence_tokens": 512, "micro_batch": 8, "density": 0.01}
    job = {"model": "tiny", "dataset": ids.new("file"), "sparsity": 0.6, "devices": 4, "repair": repair}
    spec = JobSpec.model_validate(job)
    assert memory.smaller_micro_batch(spec, Phase.TRAINING, of_host=False) == 4
    assert spec.repair_config(4)
    assert "2 sequences of 512 tokens on a device" in memory.advice(spec, Phase.TRAINING, None)
    assert "repair.micro_batch to 4" in memory.advice(spec, Phase.TRAINING, None)
    assert "repair.sequence_tokens to 256" in memory.advice(spec, Phase.TRAINING, 4)


def test_kills_in_other_containers_do_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    container, machine = tmp_path / "memory.events", tmp_path / "vmstat"
    monkeypatch.setattr("worker.memory.KILLS", (container, machine))
    machine.write_text("nr_free_pages 9\noom_kill 5\n")
    assert memory.oom_kills() == 5
    container.write_text("low 0\nhigh 0\nmax 3\noom 3\noom_kill 2\n")
    assert memory.oom_kills() == 2


@pytest.mark.parametrize(
    ("killed", "age", "code"),
    [(900, 59, "out_of_memory"), (950, 59, "out_of_memory"), (900, 121, "training_process_died")],
)
def test_a_process_that_dies_long_after_a_kill_by_the_kernel_was_not_killed_by_it(
    set_oom_kills: Callable[[int], object], monkeypatch: pytest.MonkeyPatch, killed: int, age: int, code: str
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    set_oom_kills(1)
    spec = JobSpec.model_validate({"model": "tiny", "dataset": ids.new("file"), "sparsity": 0.6})
    failures = Failures(spec)
    for second in range(2000):
        now[0] = float(second)
        failures.observe()
        if second == killed:
            set_oom_kills(2)
        if second == killed + age:
            break
    assert failures.of_exit(-signal.SIGKILL, "").code == code


@pytest.mark.parametrize("code", ["out_of_memory", "verifier_killed"])
def test_a_kill_by_the_kernel_of_the_process_that_verifies_is_lack_of_memory(
    backend: Backend, job_id: str, set_oom_kills: Callable[[int], object], code: str
) -> None:
    set_oom_kills(1)
    attempt = supervisor(backend, "lose_the_verifier")
    set_oom_kills(2 if code == "out_of_memory" else 1)
    attempt.run()
    (retried,) = [event for event in backend.event_rows(job_id) if event.type == "job.retried"]
    assert retried.data["error"]["code"] == code


def lacking_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Callable[[Pipeline], object]) -> Failed:
    """Return the message of a training process whose work, `run`, runs out of memory."""
    monkeypatch.setattr("seft.checkpoint.verify.standby", lambda _: nullcontext())
    monkeypatch.setattr(Pipeline, "run", run)
    write_job(tmp_path / "job", ["one"], model="tiny")
    sent = list[Message]()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        training.run(tmp_path / "job", Task.read(tmp_path / "job"), sent.append, FormatStore(os.open(os.devnull, 0)))
    finally:
        signal.signal(signal.SIGTERM, handler)
    (failed,) = sent
    assert isinstance(failed, Failed)
    return failed


def test_a_tensor_for_which_the_machine_has_no_memory_is_lack_of_memory_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = lacking_memory(monkeypatch, tmp_path, lambda _: torch.empty(1 << 50))
    assert (failed.user_error, failed.code, failed.of_host) == (True, "out_of_memory", True)
    assert "you tried to allocate" in failed.message


@pytest.mark.parametrize("message", NO_DEVICE_MEMORY)
def test_a_kernel_for_which_the_device_has_no_memory_is_lack_of_memory_of_the_device(
    message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_kernel(_: Pipeline) -> None:
        raise RuntimeError(message)

    failed = lacking_memory(monkeypatch, tmp_path, load_kernel)
    assert (failed.user_error, failed.code, failed.of_host) == (True, "out_of_memory", False)
    assert failed.message == message


def test_memory_that_runs_out_while_the_other_processes_load_the_model_belongs_to_training(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: object) -> None:
        raise MemoryError

    run = Run(tmp_path / "run", tiny_folder.parent, tiny_texts[:20])
    monkeypatch.setattr("worker.pipeline.send_to_others", run_out)
    with pytest.raises(MemoryError):
        run.run()
    assert run.of_type(Progressed)[-1].phase is Phase.TRAINING
