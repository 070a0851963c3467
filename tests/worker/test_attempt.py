"""One attempt in its worker, with a fake training process that follows the protocol."""

import errno
import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest
from botocore.exceptions import ClientError

from core.infra.storage import Storage
from core.jobs import actions, attempts
from core.settings import Settings
from core.states import Phase, Status
from core.tables import Job
from seft.checkpoint.facts import sha256
from tests.waiting import alive, wait_for
from tests.worker.conftest import Backend, Running, supervisor
from worker import cleanup
from worker.protocol import DATA, HELD_OUT_DATA, RETAIN_DATA, Task


def test_a_result_is_published_with_everything_reported(backend: Backend, job_id: str) -> None:
    supervisor(backend, "succeed").run()
    job, checkpoint = backend.job(job_id), backend.checkpoint(job_id)
    assert (job.status, job.step, job.progress, job.error) == (Status.SUCCEEDED, 3, 1.0, None)
    assert job.scores == {"dense": 1.0, "pruned": 3.0, "repaired": 2.0}
    assert job.measured == {"zeros": 6}
    assert backend.metrics(job_id) == {1: {"loss": 3.0}, 2: {"loss": 1.5}, 3: {"loss": 0.5}}
    phases = [kind for kind in backend.events(job_id) if kind == "phase.began"]
    others = [kind for kind in backend.events(job_id) if kind != "phase.began"]
    assert others == ["job.created", "job.claimed", "state.saved", "state.saved", "job.succeeded"]
    assert len(phases) == 2, "training, and uploading the result"
    assert [file["name"] for file in checkpoint.files] == ["model.safetensors", "manifest.json"]
    assert checkpoint.sha256 == checkpoint.files[-1]["sha256"]


def test_an_event_of_a_model_with_many_experts_is_stored_as_a_whole(backend: Backend, job_id: str) -> None:
    supervisor(backend, "evolve_many_experts").run()
    assert backend.job(job_id).status == Status.SUCCEEDED, backend.job(job_id).error
    (event,) = (row for row in backend.event_rows(job_id) if row.type == "topology.evolved")
    assert len(json.dumps(event.data)) > 1 << 20
    assert len(event.data["layers"]) == 12_500
    assert event.data["layers"]["model.layers.99.mlp.experts.124.gate_proj"]["pruned"] == 123456


def test_after_success_only_the_checkpoint_remains(backend: Backend, job_id: str) -> None:
    supervisor(backend, "succeed").run()
    prefix = f"jobs/{job_id}/1/result/"
    assert backend.storage.keys(f"jobs/{job_id}/") == [f"{prefix}manifest.json", f"{prefix}model.safetensors"]
    assert cleanup.ended_with_states(backend.sessions, 1) == []
    assert list(backend.settings.scratch.iterdir()) == []


def test_a_partly_stored_state_is_deleted(backend: Backend, job_id: str) -> None:
    class FirstFileOnly(Storage):
        """Accepts only the first file of a state."""

        def upload(self, source: Path | BinaryIO, key: str, sent: Callable[[int], None] | None = None) -> None:
            if key.endswith("/run"):
                raise ClientError({"ResponseMetadata": {"HTTPStatusCode": 400}}, "PutObject")  # type: ignore[typeddict-item]
            super().upload(source, key, sent)

    supervisor(Backend(backend.settings, backend.sessions, FirstFileOnly(backend.settings)), "succeed").run()
    assert (backend.job(job_id).status, backend.job(job_id).failures) == (Status.QUEUED, 1)
    assert backend.storage.keys(f"jobs/{job_id}/") == []


def test_a_state_replaces_files_of_the_same_name_and_the_next_attempt_gets_all_files(
    backend: Backend, job_id: str
) -> None:
    supervisor(backend, "succeed_when_resumed").run()
    job = backend.job(job_id)
    assert (job.status, job.failures) == (Status.QUEUED, 1)
    assert job.resume is not None
    assert {file["name"]: file["key"] for file in job.resume["files"]} == {
        "pruned": f"jobs/{job_id}/1/resume/0/pruned",
        "run": f"jobs/{job_id}/1/resume/3/run",
    }
    assert backend.storage.keys(f"jobs/{job_id}/") == sorted(file["key"] for file in job.resume["files"])
    supervisor(backend, "succeed_when_resumed").run()
    assert backend.job(job_id).status == Status.SUCCEEDED
    assert "attempt.resumed" in backend.events(job_id)


@pytest.mark.parametrize(
    "damage", [lambda storage, key: storage.delete([key]), lambda storage, key: storage.put(key, b"x")]
)
def test_a_missing_or_damaged_state_restarts_training_and_does_not_fail_the_job(
    backend: Backend, job_id: str, damage: Callable[[Storage, str], None]
) -> None:
    supervisor(backend, "succeed_when_resumed").run()
    resume = backend.job(job_id).resume
    assert resume is not None
    damage(backend.storage, resume["files"][0]["key"])
    supervisor(backend, "succeed_when_resumed").run()
    assert "state.missing" in backend.events(job_id)
    assert "attempt.resumed" not in backend.events(job_id)
    assert [event.attempt for event in backend.event_rows(job_id) if event.type == "topology.evolved"] == [2, 2]
    supervisor(backend, "succeed_when_resumed").run()
    assert backend.job(job_id).status == Status.SUCCEEDED
    assert all("/result/" in key for key in backend.storage.keys(f"jobs/{job_id}/"))


def test_an_object_that_is_damaged_on_its_way_is_downloaded_again(backend: Backend, job_id: str) -> None:
    class Damaging(Storage):
        def download(self, key: str, path: Path) -> None:
            super().download(key, path)
            if key not in damaged:
                damaged.append(key)
                path.write_bytes(b"x")

    supervisor(backend, "succeed_when_resumed").run()
    damaged: list[str] = []
    supervisor(replace(backend, storage=Damaging(backend.settings)), "succeed_when_resumed").run()
    assert len(damaged) == 3, "the dataset and two files of the state"
    assert backend.job(job_id).status == Status.SUCCEEDED
    assert "state.missing" not in backend.events(job_id)


def test_a_state_of_other_software_is_replaced_by_one_of_an_earlier_step(backend: Backend, job_id: str) -> None:
    supervisor(backend, "reject_the_state").run()
    with backend.sessions.begin() as session:
        session.get_one(Job, job_id).scores = {"dense": 1.0, "pruned": 3.0, "repaired": 2.0, "repaired_retained": 2.0}
    supervisor(backend, "reject_the_state").run()
    job = backend.job(job_id)
    assert "state.refused" in backend.events(job_id)
    assert job.scores == {"dense": 1.0, "pruned": 3.0}, "there is no repaired model any more"
    assert [event.data["step"] for event in backend.event_rows(job_id) if event.type == "topology.evolved"] == [1]
    assert backend.metrics(job_id) == {1: {"loss": 3.0}}, "the metrics of the lost steps are deleted"
    assert job.resume is not None
    assert {file["name"]: file["key"] for file in job.resume["files"]} == {
        "pruned": f"jobs/{job_id}/1/resume/0/pruned",
        "run": f"jobs/{job_id}/2/resume/1/run",
    }
    assert backend.storage.keys(f"jobs/{job_id}/") == sorted(file["key"] for file in job.resume["files"])
    assert (job.resume["step"], job.failures) == (1, 1), "the first step after the restart counts as progress"


def test_reports_before_a_state_are_written_before_the_state_is_used(
    backend: Backend, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.attempt_writer.FLUSH_SECONDS", 1e9)
    with Running(supervisor(backend, "report_and_save")):
        wait_for(lambda: backend.job(job_id).resume is not None)
        assert list(backend.metrics(job_id)) == [1, 2, 3]


def test_a_repeated_step_records_its_topology_event_once(backend: Backend, job_id: str) -> None:
    for _ in range(2):
        supervisor(backend, "succeed_when_resumed").run()
    events = [event for event in backend.event_rows(job_id) if event.type == "topology.evolved"]
    assert [(event.attempt, event.data["step"]) for event in events] == [(1, 3), (1, 6), (2, 9)]
    change = {"dropped": 2, "grown": 2, "reactivated": 1, "pruned": 1}
    shared = {"sparsity": 0.6, "undone": False}
    assert events[0].data == {"step": 3, **change, **shared, "layers": {"up_proj": change}}


def test_a_crash_is_retried_until_the_maximum_number_of_failures(backend: Backend, job_id: str) -> None:
    for _ in range(backend.settings.max_failures):
        assert backend.job(job_id).status == Status.QUEUED
        supervisor(backend, "crash").run()
    job = backend.job(job_id)
    assert job.status == Status.FAILED
    assert job.error is not None
    assert (job.error["fault"], job.error["code"]) == ("system_error", "training_process_died")
    assert "all the weights fell out" in job.error["message"]
    assert f"POST /jobs/{job_id}/clone" in job.error["message"].splitlines()[-1]
    assert backend.events(job_id).count("job.retried") == backend.settings.max_failures - 1


def test_a_user_error_is_not_retried(backend: Backend, job_id: str) -> None:
    supervisor(backend, "fail_with_user_error").run()
    job = backend.job(job_id)
    assert job.status == Status.FAILED
    assert job.error == {"fault": "user_error", "code": "not_enough_text", "message": "Give more text."}


def test_a_process_that_breaks_the_protocol_is_ended(backend: Backend, job_id: str) -> None:
    supervisor(backend, "write_garbage").run()
    assert backend.job(job_id).status == Status.QUEUED
    assert backend.job(job_id).failures == 1


def test_an_unexpected_error_is_a_normal_failure(backend: Backend, job_id: str) -> None:
    assert not supervisor(backend, "write_invalid_manifest").run()
    assert (backend.job(job_id).status, backend.job(job_id).failures) == (Status.QUEUED, 1)
    assert backend.events(job_id)[-1] == "job.retried"


@pytest.mark.parametrize(("place", "code"), [("file", "scratch_failed"), ("/etc/file", "internal_error")])
def test_the_scratch_folder_is_named_only_if_it_is_the_cause(
    backend: Backend, job_id: str, monkeypatch: pytest.MonkeyPatch, place: str, code: str
) -> None:
    def fail(path: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(backend.settings.scratch / place))

    attempt = supervisor(backend, "succeed")
    with monkeypatch.context() as broken:
        broken.setattr(Path, "mkdir", fail)
        assert not attempt.run()
    assert backend.event_rows(job_id)[-1].data["error"]["code"] == code


def test_a_cancel_kills_the_whole_process_group_and_cleans_up(backend: Backend, job_id: str) -> None:
    with Running(supervisor(backend, "hang_with_child")) as attempt:
        wait_for(lambda: backend.job(job_id).progress == 0.5)
        processes = [int(pid) for pid in (attempt.files.folder / "pids").read_text().split()]
        assert all(alive(process) for process in processes)
        backend.request(actions.cancel, job_id)
        wait_for(lambda: not any(alive(process) for process in processes))
    assert backend.job(job_id).status == Status.CANCELLED
    assert backend.storage.keys(f"jobs/{job_id}/") == []
    assert not attempt.files.folder.exists()


def test_a_shutdown_saves_the_state_and_counts_no_failure(backend: Backend, job_id: str) -> None:
    with Running(supervisor(backend, "save_when_asked")) as attempt:
        wait_for(lambda: backend.job(job_id).step == 4)
        attempt.draining.set()
    job = backend.job(job_id)
    assert (job.status, job.failures) == (Status.QUEUED, 0)
    assert job.resume is not None
    assert job.resume["step"] == 5
    assert backend.events(job_id)[-2:] == ["state.saved", "job.released"]


def test_a_pause_saves_the_state_and_the_job_resumes_from_it(backend: Backend, job_id: str) -> None:
    with Running(supervisor(backend, "save_when_asked")):
        wait_for(lambda: backend.job(job_id).step == 4)
        backend.request(actions.pause, job_id)
        wait_for(lambda: backend.job(job_id).status == Status.PAUSED)
    job = backend.job(job_id)
    assert job.resume is not None
    assert (job.resume["step"], job.failures) == (5, 0)
    assert backend.events(job_id)[-4:] == ["job.pausing", "state.saved", "job.released", "job.paused"]
    backend.request(actions.resume, job_id)
    supervisor(backend, "save_when_asked").run()
    assert backend.job(job_id).status == Status.SUCCEEDED


def test_a_pause_kills_the_whole_group_of_a_process_that_ignores_signals(
    backend: Backend, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.lifecycle.PAUSE_SECONDS", 0.5)
    with Running(supervisor(backend, "hang_with_child")) as attempt:
        wait_for(lambda: backend.job(job_id).progress == 0.5)
        processes = [int(pid) for pid in (attempt.files.folder / "pids").read_text().split()]
        backend.request(actions.pause, job_id)
        wait_for(lambda: not any(alive(process) for process in processes))
        wait_for(lambda: backend.job(job_id).status == Status.PAUSED)
    assert backend.job(job_id).failures == 0


def test_an_early_stop_ends_training_and_publishes(backend: Backend, job_id: str) -> None:
    with Running(supervisor(backend, "stop_when_asked")):
        wait_for(lambda: backend.job(job_id).step == 4)
        backend.request(actions.stop, job_id)
        wait_for(lambda: backend.job(job_id).status == Status.SUCCEEDED)


def test_a_new_attempt_of_a_stopped_job_gets_the_request_at_its_start(backend: Backend, job_id: str) -> None:
    attempt = backend.claim()
    backend.request(actions.stop, job_id)
    with backend.sessions.begin() as session:
        attempts.release(session, attempt)
    supervisor(backend, "stop_when_asked").run()
    assert backend.job(job_id).status == Status.SUCCEEDED


def test_a_shutdown_waits_no_longer_than_its_limit(
    backend: Backend, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.lifecycle.DRAIN_SECONDS", 0.5)
    with Running(supervisor(backend, "hang_with_child")) as attempt:
        wait_for(lambda: backend.job(job_id).progress == 0.5)
        attempt.draining.set()
    assert (backend.job(job_id).status, backend.job(job_id).failures) == (Status.QUEUED, 0)


@pytest.mark.parametrize(("micro_batch", "least"), [(1, True), (1, False), (4, True), (4, False)])
def test_running_out_of_memory_in_training_is_retried_once_with_less(
    backend: Backend, micro_batch: int, least: bool
) -> None:
    repair = {"micro_batch": micro_batch, "activation_checkpointing": least}
    job_id = backend.add_job(backend.add_dataset(["one " * 1024, "two"]), repair=repair)
    supervisor(backend, "run_out_of_memory").run()
    if micro_batch > 1 or not least:
        assert (backend.job(job_id).status, backend.job(job_id).micro_batch) == (
            Status.QUEUED,
            1 if least else micro_batch,
        )
        supervisor(backend, "run_out_of_memory").run()
    job = backend.job(job_id)
    assert job.status == Status.FAILED
    assert job.error is not None
    assert (job.error["fault"], job.error["code"]) == ("user_error", "out_of_memory")
    option = "sequence_tokens to 256" if micro_batch == 1 or least else "batch_tokens to 512"
    assert f"Set repair.{option}" in job.error["message"]


def test_a_kill_by_the_kernel_for_memory_is_retried_once(
    backend: Backend, job_id: str, set_oom_kills: Callable[[int], object]
) -> None:
    set_oom_kills(1)
    for kills, status in ((2, Status.QUEUED), (3, Status.FAILED)):
        with Running(supervisor(backend, "hang_with_child")) as attempt:
            wait_for(lambda: attempt.process is not None and (attempt.files.folder / "pids").exists())
            set_oom_kills(kills)
            os.kill(int((attempt.files.folder / "pids").read_text().split()[0]), signal.SIGKILL)
            wait_for(lambda status=status: backend.job(job_id).status == status)  # type: ignore[misc]
    error = backend.job(job_id).error
    assert error is not None
    assert error["code"] == "out_of_memory"


class Stuck(Storage):
    """An object storage in which uploads hang."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.started, self.released = threading.Event(), threading.Event()

    def upload(self, source: object, key: str, sent: object = None) -> None:
        self.started.set()
        self.released.wait()


def test_the_lease_is_renewed_while_an_upload_hangs(backend: Backend, job_id: str) -> None:
    storage = Stuck(backend.settings)
    with Running(supervisor(Backend(backend.settings, backend.sessions, storage), "save_and_wait")):
        try:
            assert storage.started.wait()
            backend.wait_for_renewals(job_id)
            assert backend.job(job_id).status == Status.RUNNING
        finally:
            storage.released.set()


def test_the_training_process_gets_no_settings_and_no_other_variables(
    backend: Backend, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SEFT_S3_SECRET_KEY", "AWS_SECRET_ACCESS_KEY", "UNKNOWN"):
        monkeypatch.setenv(name, "secret")
    with Running(supervisor(backend, "save_when_asked")) as attempt:
        wait_for(lambda: backend.job(job_id).phase == Phase.TRAINING)
        names = (attempt.files.folder / "environment").read_text().split()
        assert "PATH" in names
        assert names[-1] == str(attempt.files.folder), "temporary files are deleted with the job"
        assert not [name for name in names if name.startswith(("SEFT_", "AWS_", "UNKNOWN"))]
        assert "secret" not in (attempt.files.folder / "job.json").read_text()


@pytest.fixture
def job_of_three(backend: Backend) -> str:
    """A queued job that retains a second dataset and evaluates on a third one."""
    first, *more = (
        backend.add_dataset(texts) for texts in (["one " * 1024, "two"], ["a" * 1024, "b"], ["c" * 1024, "d"])
    )
    repair = {"retain": "dataset", "retain_dataset": more[0]}
    return backend.add_job(first, repair=repair, evaluate={"dataset": more[1]})


def test_the_training_process_gets_all_datasets(backend: Backend, job_of_three: str) -> None:
    with Running(supervisor(backend, "save_when_asked")) as attempt:
        wait_for(lambda: backend.job(job_of_three).phase == Phase.TRAINING)
        folder = attempt.files.folder
        for name, letter in ((RETAIN_DATA, "a"), (HELD_OUT_DATA, "c")):
            assert json.loads((folder / name).read_text().splitlines()[0]) == {"text": letter * 1024}
        task, hashes = Task.read(folder), [sha256(folder / name) for name in (DATA, RETAIN_DATA, HELD_OUT_DATA)]
        assert [task.dataset_sha256, task.retained_sha256, task.held_out_sha256] == hashes
        sizes = [(folder / name).stat().st_size for name in (DATA, RETAIN_DATA, HELD_OUT_DATA)]
        assert attempt.files.dataset_bytes() == sum(sizes)


@pytest.mark.parametrize("text", [b"aaa", b"ccc"], ids=["retained", "evaluated on"])
def test_a_damaged_second_dataset_is_not_used(backend: Backend, job_of_three: str, text: bytes) -> None:
    (key,) = (key for key in backend.storage.keys("datasets/") if text in backend.storage.read(key))
    backend.storage.put(key, b'{"text": "other"}\n')
    supervisor(backend, "succeed").run()
    assert (backend.job(job_of_three).status, backend.job(job_of_three).failures) == (Status.QUEUED, 1)


def test_a_damaged_dataset_is_not_trained_on(backend: Backend, job_id: str) -> None:
    (key,) = backend.storage.keys("datasets/")
    backend.storage.put(key, b'{"text": "other"}\n')
    supervisor(backend, "succeed").run()
    assert (backend.job(job_id).status, backend.job(job_id).failures) == (Status.QUEUED, 1)
