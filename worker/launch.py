"""Run the processes of a job on several devices with the elastic launch of torch. Tell each its device and threads.

The first process runs the whole job (`worker.pipeline`). The others take part in its training (`worker.replica`). If
one of them fails, the launch ends all of them and restarts none: the attempt fails, and the next one resumes. Gloo
transfers tensors of CPUs, and NCCL transfers tensors of GPUs.
"""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from unittest.mock import patch

import torch
import torch.distributed as dist

from seft.devices import choose_device
from seft.models.source import ModelSource, downloaded, find
from seft.parent_process import end_with_parent
from worker.lifecycle import PAUSE_SECONDS
from worker.protocol import Task

LOOPBACK = "127.0.0.1"
MAX_WAIT = timedelta(days=30)
"""Timeout of a collective operation. It is long, because the watchdog of the worker detects a job that hangs."""


def launch(count: int, run: Callable[[], None]) -> None:
    """Call `run` in `count` processes, which are forks of this one. Return when they have ended.

    If this process receives SIGTERM, it sends SIGTERM to them. Raises ChildFailedError if one of them fails.

    This process must not initialize CUDA, because a fork cannot use CUDA then.
    """
    # Imported here, because a job on one device does not need them.
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # LaunchConfig asks whether there is CUDA, to choose the cores of each process. That initializes CUDA.
    with patch.object(torch.cuda, "is_available", return_value=False):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            rdzv_backend="c10d",
            rdzv_endpoint=f"{LOOPBACK}:0",
            local_addr=LOOPBACK,
            max_restarts=0,
            start_method="fork",
            shutdown_timeout=int(PAUSE_SECONDS),
        )
    try:
        elastic_launch(config, _enter)(os.getpid(), run)
    except SignalException:
        return


def _enter(parent: int, run: Callable[[], None]) -> None:
    end_with_parent(parent)
    run()


def rank() -> int:
    """Return the rank of this process in the job. The first or only process has rank 0."""
    return int(os.environ.get("RANK", "0"))


def find_model(task: Task) -> ModelSource:
    """Return the source of the model of a job. If a hub model was downloaded, the source has its local folder."""
    folder = task.downloaded
    ask_hub = None if folder is None else lambda reference, _: downloaded(reference, folder)
    return find(task.spec.model, roots=task.model_roots, revision=task.spec.revision, ask_hub=ask_hub)


def dtype_of(task: Task) -> torch.dtype:
    """Return the data type of the weights while the job runs."""
    dtype: torch.dtype = getattr(torch, task.spec.dtype)
    return dtype


def device_of(task: Task) -> str:
    """Return the name of the device of this process, such as `cuda:1`."""
    device = choose_device(task.device)
    if task.spec.devices == 1 or device == "cpu":
        return device
    kind, _, first = device.partition(":")
    return f"{kind}:{int(first or 0) + rank()}"


def threads_of(task: Task) -> int:
    """Return the number of CPU threads of this process, or 0 for the default of torch.

    The threads of a job are divided among its processes.
    """
    if task.spec.devices == 1:
        return task.threads
    return max(1, (task.threads or len(os.sched_getaffinity(0))) // task.spec.devices)


def peak_memory(device: str) -> int:
    """Return the peak memory in bytes.

    On CUDA, this is the peak of tensors since the last call. Otherwise it is the peak of the process since its start.
    """
    if device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10  # Linux counts in KiB


@contextmanager
def process_group(count: int) -> Iterator[None]:
    """Connect the processes of the job while the `with` block runs. Does nothing for one process."""
    if count == 1:
        yield
        return
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=MAX_WAIT)
    yield
    dist.destroy_process_group()  # not after an error, because it could wait for processes that wait for this one
