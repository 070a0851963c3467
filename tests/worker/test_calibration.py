"""The speed of a worker's device: measured once while the worker is idle, and known to its training processes."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from sqlalchemy import text

from core import workers
from core.capability import CPU
from core.infra import queue
from core.jobs import forecast
from core.specs import Dtype, Flops
from core.tables import Worker
from tests.core.conftest import FLOPS, GPU
from tests.waiting import wait_for
from tests.worker.conftest import Backend, Running, supervisor
from worker import calibration as module
from worker.calibration import DTYPES, SHAPES, Calibration, measure, measure_all
from worker.protocol import Task
from worker.sweep import Sweep

NewSweep = Callable[[str], Sweep]


@pytest.fixture
def local(backend: Backend) -> Backend:
    """A backend whose workers run on the CPU."""
    settings = backend.settings.model_copy(update={"device": CPU, "threads": 1})
    return Backend(settings, backend.sessions, backend.storage)


@pytest.fixture
def new_sweep(local: Backend) -> NewSweep:
    """Return a function that creates the sweep of a worker of this name."""

    def make(name: str) -> Sweep:
        app = queue.make_app(local.settings)
        sweep = Sweep(name, local.settings, app, local.sessions, local.storage)
        sweep.send_heartbeat()
        return sweep

    return make


def flops_of(backend: Backend, name: str) -> tuple[float | None, float | None]:
    with backend.sessions.begin() as session:
        worker = session.get_one(Worker, name)
        return worker.flops, worker.flops_bfloat16


class Measured(Calibration):
    """A calibration whose result is known at once. It counts the measurements."""

    started = 0

    def _start(self) -> None:
        self.started += 1
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"print({json.dumps(json.dumps(FLOPS))})"], stdout=subprocess.PIPE
        )
        self._process.wait()


def test_a_process_measures_the_products_of_matrices(local: Backend) -> None:
    calibration = Calibration(local.settings)
    assert calibration.poll(idle=False) is None
    found: list[Flops] = []

    def is_known() -> bool:
        result = calibration.poll(idle=True)
        found.extend([] if result is None else [result])
        return bool(found)

    wait_for(is_known)
    assert set(found[0]) == {Dtype.FLOAT32, Dtype.BFLOAT16}
    assert min(found[0].values()) > 1e6
    assert calibration.poll(idle=True) is None, "it is reported once"


def test_the_speed_is_that_of_the_fastest_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runs take 4 s, 1 s and 2 s."""
    import torch

    runs, clock = iter([0.0, 4.0, 10.0, 11.0, 20.0, 22.0]), iter([0.0, 0.1, 0.2, 0.25, 0.35])
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(runs), monotonic=lambda: next(clock)))
    assert measure(torch, torch.device(CPU), 8, 16, 32, dtype=Dtype.FLOAT32) == 2 * 8 * 16 * 32
    assert not [*runs, *clock]


def test_the_measured_speed_of_every_data_type_is_plausible() -> None:
    import torch

    for dtype in DTYPES:
        assert 1e6 < measure(torch, torch.device(CPU), *SHAPES[0], dtype=dtype) < 1e15


@pytest.mark.parametrize(("speed", "count"), [(1e9, 1), (1e10, 2), (1e12, 3)])
def test_a_product_that_would_take_too_long_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, speed: float, count: int
) -> None:
    measured: list[tuple[int, ...]] = []

    def record(_torch: object, _device: object, *shape: int, dtype: Dtype) -> float:
        assert dtype is Dtype.BFLOAT16
        measured.append(shape)
        return speed

    monkeypatch.setattr(module, "measure", record)
    assert measure_all(None, None, Dtype.BFLOAT16) == [speed] * count
    assert measured == list(SHAPES[:count])


def test_a_failed_measurement_is_not_repeated(local: Backend) -> None:
    calibration = Calibration(local.settings.model_copy(update={"device": "no such device"}))
    assert calibration.poll(idle=True) is None
    process = calibration._process
    assert process is not None
    assert process.wait() != 0
    assert calibration.poll(idle=True) is None
    assert calibration.poll(idle=True) is None
    assert calibration._process is process


def test_an_idle_worker_measures_and_a_second_one_on_an_equal_device_does_not(
    local: Backend, new_sweep: NewSweep
) -> None:
    first, second = new_sweep("first"), new_sweep("second")
    first.calibration, second.calibration = Measured(local.settings), Measured(local.settings)
    first.calibrate()
    assert first.calibration.started == 0, "it may soon get a job"
    first.calibrate()
    assert first.calibration.started == 1
    first.calibrate()
    assert flops_of(local, "first") == tuple(FLOPS.values())
    second.calibrate()
    assert (flops_of(local, "second"), second.calibration.started) == (tuple(FLOPS.values()), 0)
    with local.sessions.begin() as session:
        session.execute(text("UPDATE workers SET device_name = 'another device'"))
        assert workers.find_flops(session) == {"another device": FLOPS}


def test_a_worker_does_not_measure_while_it_runs_a_job(local: Backend, new_sweep: NewSweep, job_id: str) -> None:
    sweep = new_sweep("worker-1")
    sweep.calibration = calibration = Measured(local.settings)
    local.claim()
    for _ in range(3):
        sweep.calibrate()
    assert (calibration.started, flops_of(local, "worker-1")) == (0, (None, None))


def test_a_training_process_gets_the_speed_of_its_device_and_its_remaining_time_is_in_the_job(
    backend: Backend, job_id: str
) -> None:
    with backend.sessions.begin() as session:
        workers.record_heartbeat(session, "worker-1", GPU)
        workers.record_flops(session, "worker-1", FLOPS)
    attempt = supervisor(backend, "save_when_asked")
    attempt.attempt = replace(attempt.attempt, capability=GPU)
    with Running(attempt):
        wait_for(lambda: backend.job(job_id).step == 4)
        finish = forecast.finish(backend.job(job_id))
        speed = Task.read(attempt.files.folder).speed
    assert finish is not None
    assert timedelta() < finish - datetime.now(UTC) <= timedelta(hours=1)
    assert speed.flops == FLOPS
    assert backend.job(job_id).estimated_finish is None, "the job waits again"
