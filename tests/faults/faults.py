"""What can go wrong with a running job, each as a function that does it to a drill and leaves all servers running."""

import ctypes.util
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.faults.drill import SOON, WORKERS, Drill
from worker.disk_space import RESERVE_BYTES

Fault = Callable[[Drill, str], bool]
AWAY_SECONDS = 2.0
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
    """Nothing."""
    return True


def kill_worker(drill: Drill, job_id: str) -> bool:
    """SIGKILL of the worker."""
    if (worker := drill.worker_of(job_id)) is None:
        return False
    worker.kill()
    worker.wait()
    drill.tend()
    return True


def kill_child(drill: Drill, job_id: str) -> bool:
    """SIGKILL of the training process."""
    if (child := drill.child_of(job_id)) is None:
        return False
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    return True


def drain_worker(drill: Drill, job_id: str) -> bool:
    """SIGTERM of the worker."""
    if (worker := drill.worker_of(job_id)) is None:
        return False
    worker.terminate()
    worker.wait(60)
    drill.tend()
    return True


def suspend_worker(drill: Drill, job_id: str) -> bool:
    """SIGSTOP of the worker for longer than its lease, then SIGCONT."""
    if (worker := drill.worker_of(job_id)) is None:
        return False
    worker.send_signal(signal.SIGSTOP)
    time.sleep(1.6 * SOON["LEASE"])
    worker.send_signal(signal.SIGCONT)
    return True


def kill_api(drill: Drill, job_id: str) -> bool:
    """SIGKILL and restart of the API."""
    drill.api.kill()
    time.sleep(AWAY_SECONDS)
    drill.api.start()
    return True


def restart_postgres(drill: Drill, job_id: str) -> bool:
    """Kill and restart of Postgres."""
    drill.servers.postgres.kill()
    time.sleep(AWAY_SECONDS)
    drill.servers.postgres.start()
    return True


def restart_valkey(drill: Drill, job_id: str) -> bool:
    """Kill and restart of Valkey, which forgets everything."""
    drill.servers.valkey.kill()
    time.sleep(AWAY_SECONDS)
    drill.servers.valkey.start()
    return True


def restart_storage(drill: Drill, job_id: str) -> bool:
    """Kill and restart of the object storage."""
    drill.servers.storage.kill()
    time.sleep(AWAY_SECONDS)
    drill.servers.storage.start()
    return True


def cut_upload(drill: Drill, job_id: str) -> bool:
    """The wire to the storage cut in mid-upload."""
    before = drill.wire.bytes_up
    hit = drill.wait(lambda: drill.wire.bytes_up > before + (1 << 15), seconds=20)
    drill.wire.cut()
    time.sleep(AWAY_SECONDS)
    drill.wire.mend()
    return hit


def fill_disk(drill: Drill, job_id: str) -> bool:
    """A full disk, until the job waits for room."""
    filler = drill.scratch / "filler"
    with suppress(OSError), filler.open("wb") as file:
        while file.write(bytes(1 << 20)):
            pass
    hit = drill.wait(lambda: drill.job(job_id).status in {"paused", "succeeded", "failed"}, seconds=60)
    hit = hit and drill.job(job_id).status == "paused"
    filler.unlink()
    return hit


def shift_clock(drill: Drill, job_id: str) -> bool:
    """The clock of the workers' host ahead by an hour from now on."""
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
    """A file system of its own for the scratch folder, so that filling it hurts nobody else; needs to be root."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)


ALWAYS: tuple[Fault, ...] = (
    kill_worker,
    kill_child,
    drain_worker,
    suspend_worker,
    kill_api,
    restart_postgres,
    restart_valkey,
    restart_storage,
    cut_upload,
)
