"""Measure how fast the device of this worker multiplies matrices. `core.estimate.calibration` converts it to seconds.

A worker does not load torch. `python -m worker.calibration DEVICE THREADS PARENT` starts the process that measures.
"""

import json
import math
import os
import subprocess
import sys
import time
from statistics import median
from typing import Any

import structlog

from core.settings import Settings
from core.specs import Dtype, Flops
from seft.parent_process import end_with_parent
from worker import environment

SHAPES = ((512, 576, 1536), (1024, 1024, 4096), (2048, 4096, 4096))
"""Sizes (tokens, inputs, outputs) of the measured products, from the smallest. The median speed is the result."""
DTYPES = (Dtype.FLOAT32, Dtype.BFLOAT16)
"""Data types in which jobs train. Both are measured: a job can ask for one without instructions on the device."""
SECONDS = 0.3
"""Seconds for which each product is repeated. The fastest run counts, because other runs may be interrupted."""
LONGEST = 1.0
"""Expected seconds of a single product above which it is not measured. A slow processor would need a minute for the
largest one."""

log = structlog.get_logger(__name__)


class Calibration:
    """Measures the device once, in a separate process. The caller does not wait for the process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False

    def poll(self, *, idle: bool) -> Flops | None:
        """Return the operations per second by data type in the first call after the measurement. Otherwise return None.

        If `idle` is true and the process was not started yet, starts it. A measurement that fails is not repeated.
        """
        if self._process is None:
            if idle:
                self._start()
            return None
        if self._ended or self._process.poll() is None:
            return None
        self._ended = True
        output, _ = self._process.communicate()
        if self._process.returncode:
            log.warning("calibration.failed", status=self._process.returncode)
            return None
        return {Dtype(name): value for name, value in json.loads(output).items()}

    def _start(self) -> None:
        name, threads = self._settings.device, self._settings.threads
        command = [sys.executable, "-m", "worker.calibration", name, str(threads), str(os.getpid())]
        variables = environment.of_child(os.environ, self._settings.scratch)
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, env=variables)


def main(name: str, threads: int, parent: int) -> None:
    """Print the median operations per second of matrix products, as a JSON object by data type."""
    end_with_parent(parent)
    import torch

    from seft.devices import choose_device
    from seft.float32_products import use_float32_products

    use_float32_products()
    if threads:
        torch.set_num_threads(threads)
    device = torch.device(choose_device(name))
    sys.stdout.write(json.dumps({each: median(measure_all(torch, device, each)) for each in DTYPES}))


def measure_all(torch: Any, device: Any, dtype: Dtype) -> list[float]:
    """Return the operations per second of each product. Skip products that are expected to exceed `LONGEST`."""
    speeds: list[float] = []
    for shape in SHAPES:
        if not speeds or 2 * math.prod(shape) <= LONGEST * speeds[-1]:
            speeds.append(measure(torch, device, *shape, dtype=dtype))
    return speeds


def measure(torch: Any, device: Any, tokens: int, inputs: int, outputs: int, *, dtype: Dtype) -> float:
    """Return the operations per second of the fastest run of a product of an input matrix and a weight matrix."""
    place = {"device": device, "dtype": getattr(torch, dtype)}
    left, right = torch.randn(tokens, inputs, **place), torch.randn(inputs, outputs, **place)
    best, end = float("inf"), time.monotonic() + SECONDS
    while time.monotonic() < end:
        start = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * tokens * inputs * outputs / best


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
