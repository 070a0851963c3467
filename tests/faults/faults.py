"""Faults: functions that disturb a running job. Each leaves all servers running, and returns whether it happened."""

import ctypes.util
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from core.states import Status
from tests.faults.drill import INTERVALS, WORKERS, Drill
from worker.disk_space import RESERVE_BYTES

Fault = Callable[[Drill, str], bool]
OUTAGE_SECONDS = 2.0
DISK_BYTES = RESERVE_BYTES + (64 << 20)
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
#include <sys/time.h>
#define OFF 3600
int clock_gettime(clockid_t id, struct timespec *t) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int failed = real(id, t);
  if (!failed && id == CLOCK_REALTIME) t->tv_sec += OFF;
  return failed;
}
time_t time(time_t *t) {
  struct timespec now; clock_gettime(CLOCK_REALTIME, &now);
  if (t) *t = now.tv_sec;
  return now.tv_sec;
}
int gettimeofday(struct timeval *t, void *zone) {
  struct timespec now; clock_gettime(CLOCK_REALTIME, &now);
  t->tv_sec = now.tv_sec; t->tv_usec = now.tv_nsec / 1000;
  return 0;
}
"""


def none(drill: Drill, job_id: str) -> bool:
    """Inject no fault."""
    return True


def kill_worker(drill: Drill, job_id: str) -> bool:
    """Kill the worker with SIGKILL."""
    if (worker := drill.worker_of(job_id)) is None:
        return False
    worker.kill()
    worker.wait()
    drill.replace_workers()
    return True


def kill_child(drill: Drill, job_id: str) -> bool:
    """Kill the training process with SIGKILL."""
    if (child := drill.child_of(job_id)) is None:
        return False
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    return True


def kill_saved_child(drill: Drill, job_id: str) -> bool:
    """Kill the training process with SIGKILL after a state of a step was saved."""
    saved = drill.wait(lambda: ((job := drill.job(job_id)).resume or {"step": 0})["step"] or Status(job.status).final)
    return saved and kill_child(drill, job_id)


def drain_worker(drill: Drill, job_id: str) -> bool:
    """Stop the worker with SIGTERM."""
    if (worker := drill.worker_of(job_id)) is None:
        return False
    worker.terminate()
    worker.wait(60)
    drill.replace_workers()
    return True


def suspend_worker(drill: Drill, job_id: str) -> bool:
    """Suspend the worker with SIGSTOP for longer than its lease, then send SIGCONT."""
    if (worker := drill.worker_of(job_id)) is None:
        return False
    worker.send_signal(signal.SIGSTOP)
    time.sleep(1.6 * INTERVALS["LEASE"])
    worker.send_signal(signal.SIGCONT)
    return True


def kill_api(drill: Drill, job_id: str) -> bool:
    """Kill the API with SIGKILL and restart it."""
    drill.api.kill()
    time.sleep(OUTAGE_SECONDS)
    drill.api.start()
    return True


def restart_postgres(drill: Drill, job_id: str) -> bool:
    """Kill and restart Postgres."""
    drill.servers.postgres.kill()
    time.sleep(OUTAGE_SECONDS)
    drill.servers.postgres.start()
    return True


def restart_valkey(drill: Drill, job_id: str) -> bool:
    """Kill and restart Valkey, which loses all its data."""
    drill.servers.valkey.kill()
    time.sleep(OUTAGE_SECONDS)
    drill.servers.valkey.start()
    return True


def restart_storage(drill: Drill, job_id: str) -> bool:
    """Kill and restart the object storage."""
    drill.servers.storage.kill()
    time.sleep(OUTAGE_SECONDS)
    drill.servers.storage.start()
    return True


def cut_upload(drill: Drill, job_id: str) -> bool:
    """Cut the connections to the storage during an upload."""
    before = drill.proxy.bytes_up
    drill.wait(lambda: drill.proxy.bytes_up > before + (1 << 15) or drill.job(job_id).status == "succeeded")
    hit = drill.proxy.bytes_up > before + (1 << 15)
    drill.proxy.cut()
    time.sleep(OUTAGE_SECONDS)
    drill.proxy.restore()
    return hit


def fill_disk(drill: Drill, job_id: str) -> bool:
    """Fill the disk until the job is paused for lack of disk space, then free it."""
    filler = drill.scratch / "filler"
    with suppress(OSError), filler.open("wb") as file:
        while file.write(bytes(1 << 20)):
            pass
    hit = drill.wait(lambda: drill.job(job_id).status in {"paused", "succeeded", "failed"}, seconds=60)
    hit = hit and drill.job(job_id).status == "paused"
    filler.unlink()
    return hit


def shift_clock(drill: Drill, job_id: str) -> bool:
    """Restart the workers with a clock that is one hour ahead."""
    library = drill.folder / "clock.so"
    if not library.exists():
        source = drill.folder / "clock.c"
        source.write_text(CLOCK)
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    for worker in drill.workers:
        worker.terminate()
    for _ in range(WORKERS):
        drill.start_worker(LD_PRELOAD=str(library))
    return True


def has_compiler() -> bool:
    return shutil.which("cc") is not None and ctypes.util.find_library("c") is not None


def mount_small_disk(folder: Path) -> bool:
    """Mount a small file system as the scratch folder, so that only the workers run out of space. Needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)


ALWAYS: tuple[Fault, ...] = (
    kill_worker,
    kill_child,
    kill_saved_child,
    drain_worker,
    suspend_worker,
    kill_api,
    restart_postgres,
    restart_valkey,
    restart_storage,
    cut_upload,
)
