"""An attempt as its worker sees it, with a process that speaks the protocol in the place of the one that trains."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
from botocore.exceptions import ClientError
from pydantic import SecretStr

from core.infra.storage import Storage
from core.jobs import actions, attempts
from core.states import Phase, Status
from core.tables import Job
from tests.worker.conftest import House, alive, supervisor, wait_for
from worker import cleanup
from worker.attempt import Supervisor


class Running:
    """A supervisor in a thread, as in a worker."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.thread = threading.Thread(target=supervisor.run)

    def __enter__(self) -> Supervisor:
        self.thread.start()
        return self.supervisor

    def __exit__(self, *_: object) -> None:
        self.supervisor.draining.set()
        self.thread.join(30)
        assert not self.thread.is_alive()


def test_a_result_is_published_with_all_that_was_reported(house: House, job_id: str) -> None:
    supervisor(house, "succeed").run()
    job, checkpoint = house.job(job_id), house.checkpoint(job_id)
    assert (job.status, job.step, job.progress, job.error) == (Status.SUCCEEDED, 3, 1.0, None)
    assert job.scores == {"dense": 1.0, "pruned": 3.0, "repaired": 2.0}
    assert job.measured == {"zeros": 6}
    assert house.metrics(job_id) == {1: {"loss": 3.0}, 2: {"loss": 1.5}, 3: {"loss": 0.5}}
    phases = [kind for kind in house.events(job_id) if kind == "phase.began"]
    others = [kind for kind in house.events(job_id) if kind != "phase.began"]
    assert others == ["job.created", "job.claimed", "state.saved", "state.saved", "job.succeeded"]
    assert len(phases) == 2, "training, and uploading the result"
    assert [file["name"] for file in checkpoint.files] == ["model.safetensors", "manifest.json"]
    assert checkpoint.sha256 == checkpoint.files[-1]["sha256"]


def test_after_success_only_the_checkpoint_is_left(house: House, job_id: str) -> None:
    supervisor(house, "succeed").run()
    prefix = f"jobs/{job_id}/1/result/"
    assert house.storage.keys(f"jobs/{job_id}/") == [f"{prefix}manifest.json", f"{prefix}model.safetensors"]
    assert cleanup.ended_with_states(house.sessions, 1) == []
    assert list(house.settings.scratch.iterdir()) == []


def test_of_a_state_that_was_stored_by_half_nothing_is_left(house: House, job_id: str) -> None:
    class Narrow(Storage):
        """Takes only the first file of a state."""

        def upload(self, source: Path | BinaryIO, key: str) -> None:
            if key.endswith("/run"):
                raise ClientError({"ResponseMetadata": {"HTTPStatusCode": 403}}, "PutObject")  # type: ignore[typeddict-item]
            super().upload(source, key)

    supervisor(House(house.settings, house.sessions, Narrow(house.settings)), "succeed").run()
    assert (house.job(job_id).status, house.job(job_id).failures) == (Status.QUEUED, 1)
    assert house.storage.keys(f"jobs/{job_id}/") == []


def test_a_state_replaces_its_namesakes_and_the_next_attempt_gets_all_of_it(house: House, job_id: str) -> None:
    supervisor(house, "succeed_when_resumed").run()
    job = house.job(job_id)
    assert (job.status, job.failures) == (Status.QUEUED, 1)
    assert job.resume is not None
    assert {file["name"]: file["key"] for file in job.resume["files"]} == {
        "pruned": f"jobs/{job_id}/1/resume/0/pruned",
        "run": f"jobs/{job_id}/1/resume/3/run",
    }
    assert house.storage.keys(f"jobs/{job_id}/") == sorted(file["key"] for file in job.resume["files"])
    supervisor(house, "succeed_when_resumed").run()
    assert house.job(job_id).status == Status.SUCCEEDED
    assert "attempt.resumed" in house.events(job_id)


@pytest.mark.parametrize(
    "damage", [lambda storage, key: storage.delete([key]), lambda storage, key: storage.put(key, b"x")]
)
def test_a_state_that_is_gone_or_damaged_costs_its_steps_and_not_the_job(
    house: House, job_id: str, damage: Callable[[Storage, str], None]
) -> None:
    supervisor(house, "succeed_when_resumed").run()
    resume = house.job(job_id).resume
    assert resume is not None
    damage(house.storage, resume["files"][0]["key"])
    supervisor(house, "succeed_when_resumed").run()
    assert "state.missing" in house.events(job_id)
    assert "attempt.resumed" not in house.events(job_id)
    assert [event.attempt for event in house.told(job_id) if event.type == "topology.evolved"] == [2, 2]
    supervisor(house, "succeed_when_resumed").run()
    assert house.job(job_id).status == Status.SUCCEEDED
    assert all("/result/" in key for key in house.storage.keys(f"jobs/{job_id}/"))


def test_a_state_that_other_software_left_is_replaced_by_one_of_an_earlier_step(house: House, job_id: str) -> None:
    supervisor(house, "refuse_the_state").run()
    with house.sessions.begin() as session:
        session.get_one(Job, job_id).scores = {"dense": 1.0, "pruned": 3.0, "repaired": 2.0}
    supervisor(house, "refuse_the_state").run()
    job = house.job(job_id)
    assert "state.refused" in house.events(job_id)
    assert job.scores == {"dense": 1.0, "pruned": 3.0}, "nothing that is repaired is there"
    assert [event.data["step"] for event in house.told(job_id) if event.type == "topology.evolved"] == [1]
    assert house.metrics(job_id) == {1: {"loss": 3.0}}, "what the lost steps reported is gone"
    assert job.resume is not None
    assert {file["name"]: file["key"] for file in job.resume["files"]} == {
        "pruned": f"jobs/{job_id}/1/resume/0/pruned",
        "run": f"jobs/{job_id}/2/resume/1/run",
    }
    assert house.storage.keys(f"jobs/{job_id}/") == sorted(file["key"] for file in job.resume["files"])
    assert (job.resume["step"], job.failures) == (1, 1), "its first step anew is further than none"


def test_what_was_reported_before_a_state_is_written_when_the_state_counts(
    house: House, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.ledger.FLUSH_SECONDS", 1e9)
    with Running(supervisor(house, "report_and_save")):
        wait_for(lambda: house.job(job_id).resume is not None)
        assert list(house.metrics(job_id)) == [1, 2, 3]


def test_a_step_that_is_taken_again_tells_its_event_of_the_topology_once(house: House, job_id: str) -> None:
    for _ in range(2):
        supervisor(house, "succeed_when_resumed").run()
    told = [event for event in house.told(job_id) if event.type == "topology.evolved"]
    assert [(event.attempt, event.data["step"]) for event in told] == [(1, 3), (1, 6), (2, 9)]
    change = {"dropped": 2, "grown": 2, "reactivated": 1, "pruned": 1}
    assert told[0].data == {"step": 3, **change, "layers": {"up_proj": change}}


def test_a_crash_is_tried_again_until_too_many_have_failed(house: House, job_id: str) -> None:
    for _ in range(house.settings.max_failures):
        assert house.job(job_id).status == Status.QUEUED
        supervisor(house, "crash").run()
    job = house.job(job_id)
    assert job.status == Status.FAILED
    assert job.error is not None
    assert (job.error["fault"], job.error["code"]) == ("system_error", "training_process_died")
    assert "all the weights fell out" in job.error["message"]
    assert house.events(job_id).count("job.retried") == house.settings.max_failures - 1


def test_a_user_error_is_not_tried_again(house: House, job_id: str) -> None:
    supervisor(house, "refuse").run()
    job = house.job(job_id)
    assert job.status == Status.FAILED
    assert job.error == {"fault": "user_error", "code": "not_enough_text", "message": "Give more text."}


def test_a_process_that_breaks_the_protocol_is_ended(house: House, job_id: str) -> None:
    supervisor(house, "babble").run()
    assert house.job(job_id).status == Status.QUEUED
    assert house.job(job_id).failures == 1


def test_what_nobody_foresaw_is_a_failure_like_another(house: House, job_id: str) -> None:
    assert not supervisor(house, "forge").run()
    assert (house.job(job_id).status, house.job(job_id).failures) == (Status.QUEUED, 1)
    assert house.events(job_id)[-1] == "job.retried"


def test_a_cancel_ends_the_whole_group_and_leaves_nothing(house: House, job_id: str) -> None:
    with Running(supervisor(house, "hang_with_child")) as attempt:
        wait_for(lambda: house.job(job_id).progress == 0.5)
        processes = [int(pid) for pid in (attempt.files.folder / "pids").read_text().split()]
        assert all(alive(process) for process in processes)
        house.ask(actions.cancel, job_id)
        wait_for(lambda: not any(alive(process) for process in processes), seconds=5)
    assert house.job(job_id).status == Status.CANCELLED
    assert house.storage.keys(f"jobs/{job_id}/") == []
    assert not attempt.files.folder.exists()


def test_a_shutdown_saves_the_state_and_charges_nothing(house: House, job_id: str) -> None:
    with Running(supervisor(house, "save_when_told")) as attempt:
        wait_for(lambda: house.job(job_id).step == 4)
        attempt.draining.set()
    job = house.job(job_id)
    assert (job.status, job.failures) == (Status.QUEUED, 0)
    assert job.resume is not None
    assert job.resume["step"] == 5
    assert house.events(job_id)[-2:] == ["state.saved", "job.released"]


def test_a_pause_saves_the_state_and_the_job_goes_on_from_it(house: House, job_id: str) -> None:
    with Running(supervisor(house, "save_when_told")) as attempt:
        wait_for(lambda: house.job(job_id).step == 4)
        house.ask(actions.pause, job_id)
        wait_for(lambda: house.job(job_id).status == Status.PAUSED, seconds=5)
        assert attempt.process_ended
    job = house.job(job_id)
    assert job.resume is not None
    assert (job.resume["step"], job.failures) == (5, 0)
    assert house.events(job_id)[-4:] == ["job.pausing", "state.saved", "job.released", "job.paused"]
    house.ask(actions.resume, job_id)
    supervisor(house, "save_when_told").run()
    assert house.job(job_id).status == Status.SUCCEEDED


def test_a_pause_ends_the_whole_group_of_a_process_that_is_deaf(
    house: House, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.attempt.PAUSE_SECONDS", 0.5)
    with Running(supervisor(house, "hang_with_child")) as attempt:
        wait_for(lambda: house.job(job_id).progress == 0.5)
        processes = [int(pid) for pid in (attempt.files.folder / "pids").read_text().split()]
        house.ask(actions.pause, job_id)
        wait_for(lambda: not any(alive(process) for process in processes), seconds=5)
        wait_for(lambda: house.job(job_id).status == Status.PAUSED)
    assert house.job(job_id).failures == 0


def test_a_stop_ends_training_and_publishes(house: House, job_id: str) -> None:
    with Running(supervisor(house, "stop_when_told")):
        wait_for(lambda: house.job(job_id).step == 4)
        house.ask(actions.stop, job_id)
        wait_for(lambda: house.job(job_id).status == Status.SUCCEEDED, seconds=5)


def test_an_attempt_at_a_stopped_job_is_told_from_the_start(house: House, job_id: str) -> None:
    attempt = house.claim()
    house.ask(actions.stop, job_id)
    with house.sessions.begin() as session:
        attempts.release(session, attempt)
    supervisor(house, "stop_when_told").run()
    assert house.job(job_id).status == Status.SUCCEEDED


def test_a_shutdown_waits_no_longer_than_it_may(house: House, job_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.attempt.DRAIN_SECONDS", 0.5)
    with Running(supervisor(house, "hang_with_child")) as attempt:
        wait_for(lambda: house.job(job_id).progress == 0.5)
        attempt.draining.set()
    assert (house.job(job_id).status, house.job(job_id).failures) == (Status.QUEUED, 0)


def test_a_silent_process_is_ended(house: House, job_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.watchdog.SILENT_SECONDS", 3.0)
    supervisor(house, "hang_with_child").run()
    assert (house.job(job_id).status, house.job(job_id).failures) == (Status.QUEUED, 1)
    (told,) = [event for event in house.told(job_id) if event.type == "attempt.hung"]
    assert "in hang_with_child" in told.data["output"], "the stack of the process that hangs"
    assert "said nothing for" in told.data["message"]


def test_training_that_takes_no_more_steps_is_ended(house: House, job_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.watchdog.STEP_SECONDS", 1.0)
    supervisor(house, "get_stuck").run()
    assert (house.job(job_id).status, house.job(job_id).failures) == (Status.QUEUED, 1)
    assert "job.retried" in house.events(job_id)
    (told,) = [event for event in house.told(job_id) if event.type == "attempt.hung"]
    assert "No step came for" in told.data["message"]


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_memory_that_runs_out_in_training_is_tried_once_more_with_less(house: House, micro_batch: int) -> None:
    job_id = house.add_job(house.add_dataset(["one", "two"]), repair={"micro_batch": micro_batch})
    supervisor(house, "run_out_of_memory").run()
    if micro_batch > 1:
        assert (house.job(job_id).status, house.job(job_id).micro_batch) == (Status.QUEUED, 1)
        supervisor(house, "run_out_of_memory").run()
    job = house.job(job_id)
    assert job.status == Status.FAILED
    assert job.error is not None
    assert (job.error["fault"], job.error["code"]) == ("user_error", "out_of_memory")
    assert "held 1 x 512 tokens" in job.error["message"]
    assert "repair.sequence_tokens 256" in job.error["message"]


def test_what_the_kernel_ends_for_memory_is_tried_once_more(
    house: House, job_id: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counts = tmp_path / "vmstat"
    counts.write_text("oom_kill 1\n")
    monkeypatch.setattr("worker.memory.VMSTAT", counts)
    for kills, status in ((2, Status.QUEUED), (3, Status.FAILED)):
        with Running(supervisor(house, "hang_with_child")) as attempt:
            wait_for(lambda: attempt.process is not None and (attempt.files.folder / "pids").exists())
            counts.write_text(f"oom_kill {kills}\n")
            os.kill(int((attempt.files.folder / "pids").read_text().split()[0]), signal.SIGKILL)
            wait_for(lambda status=status: house.job(job_id).status == status)  # type: ignore[misc]
    error = house.job(job_id).error
    assert error is not None
    assert error["code"] == "out_of_memory"


class Stuck(Storage):
    """An object storage that takes an upload and does not end it."""

    let_go = threading.Event()

    def upload(self, source: object, key: str) -> None:
        assert self.let_go.wait(30)


def test_the_lease_is_renewed_while_an_upload_hangs(house: House, job_id: str) -> None:
    stuck = House(house.settings, house.sessions, Stuck(house.settings))
    with Running(supervisor(stuck, "save_and_wait")):
        time.sleep(1.5 * house.settings.lease_seconds)
        with house.sessions.begin() as session:
            assert attempts.claim(session, "worker-2", 1) is None
        job = house.job(job_id)
        assert job.lease_expires_at is not None
        assert job.lease_expires_at > job.updated_at
        Stuck.let_go.set()


def test_a_storage_that_refuses_fails_the_attempt_at_its_first_state(house: House, job_id: str) -> None:
    class ReadOnly(Storage):
        """May read as the house does; writes with rights that it does not have."""

        def download(self, key: str, path: Path) -> None:
            house.storage.download(key, path)

    settings = house.settings.model_copy(update={"s3_secret_key": SecretStr("wrong")})
    supervisor(House(settings, house.sessions, ReadOnly(settings)), "save_and_wait").run()
    assert (house.job(job_id).status, house.job(job_id).failures) == (Status.QUEUED, 1)


def test_the_process_gets_none_of_the_settings(house: House, job_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEFT_S3_SECRET_KEY", "secret")
    with Running(supervisor(house, "save_when_told")) as attempt:
        wait_for(lambda: house.job(job_id).phase == Phase.TRAINING)
        names = (attempt.files.folder / "environment").read_text().split()
        assert "PATH" in names
        assert not [name for name in names if name.startswith("SEFT_")]
        assert "secret" not in (attempt.files.folder / "job.json").read_text()


def test_a_damaged_dataset_is_not_trained_on(house: House, job_id: str) -> None:
    (key,) = house.storage.keys("datasets/")
    house.storage.put(key, b'{"text": "other"}\n')
    supervisor(house, "succeed").run()
    assert (house.job(job_id).status, house.job(job_id).failures) == (Status.QUEUED, 1)
