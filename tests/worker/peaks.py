"""The peak memory of each phase of a job, measured in a process of its own.

`python -m tests.worker.peaks FOLDER` runs the job in the folder and prints the peaks as JSON. The memory is the private
memory (Pss_Anon) of the process and its children, in which a page that two processes share counts once. Peaks of the
process itself between two samples are not missed: the kernel keeps the highest resident memory (VmHWM in proc(5)), and
each sample resets it. The kernel needs tens of milliseconds to sum the private memory, and the process gets no memory
meanwhile. So it is summed only if a process has grown, or after a while.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import RLock, Thread

from core.specs import JobSpec
from core.states import Phase
from seft.checkpoint.verify import standby
from worker import environment
from worker.pipeline import Pipeline
from worker.protocol import DATA, Message, Progressed, Task

SAMPLE_SECONDS = 0.01
READ_SECONDS = 0.25
"""Seconds after which the memory is summed again although no process has grown."""
SAME_BYTES = 2 * 2**20
"""A process whose resident memory changes by less has not changed while its private memory was summed."""
RESET_HIGHEST = "5"
"""Written to `clear_refs` of a process, it resets the highest resident memory (proc(5))."""


def write_job(folder: Path, spec: JobSpec, texts: Sequence[str]) -> Path:
    """Write the files of a job to a new folder, and return it. The model is beside the folder."""
    folder.mkdir()
    (folder / DATA).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    Task(
        spec=spec,
        dataset_sha256="0" * 64,
        resume=None,
        model_roots=[folder.parent],
        device="cpu",
        threads=1,
        checkpoint_seconds=1000,
        micro_batch=None,
    ).write(folder)
    return folder


def measure_peaks(job: Path) -> dict[Phase, int]:
    """Run the job in the folder in a new process. Return the peak memory of each phase in bytes."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.worker.peaks", str(job)],
        env=environment.of_training(environment.of_child(os.environ, job.parent), job.parent),
        stdout=subprocess.PIPE,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    return {Phase(name): peak for name, peak in json.loads(result.stdout).items()}


def private_bytes(pid: int) -> int:
    """Return the private memory of a process; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon")), 0)


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process that is not of files; 0 if it has ended."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return (int(resident) - int(shared)) * resource.getpagesize()


class HighWaterMark:
    """The highest resident memory of this process, which the kernel keeps."""

    def __init__(self) -> None:
        self._files = 0

    def read(self) -> tuple[int, int]:
        """Return the resident memory, and the bytes by which it was higher at its peak since the last `reset`.

        The second number does not include files that were mapped at an earlier call and are not mapped now.
        """
        lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
        sizes = {words[0]: int(words[1]) * 1024 for words in lines if words[0] in {"VmHWM:", "VmRSS:", "RssFile:"}}
        self._files = max(self._files, sizes["RssFile:"])
        unmapped = self._files - sizes["RssFile:"]
        return sizes["VmRSS:"], max(0, sizes["VmHWM:"] - sizes["VmRSS:"] - unmapped)

    def reset(self) -> None:
        """Start again from the memory of now."""
        Path("/proc/self/clear_refs").write_text(RESET_HIGHEST)
        self._files = 0


def processes() -> list[int]:
    """Return this process and the children of all its threads."""
    found = [os.getpid()]
    for children in Path("/proc/self/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            found += map(int, children.read_text().split())
    return found


def main(folder: Path) -> None:
    """Run the job and print the peaks."""
    peaks, phase, over, mark, lock = dict[Phase, int](), Phase.LOADING, False, HighWaterMark(), RLock()

    def measure() -> None:
        with lock:
            before, _ = mark.read()
            private = sum(map(private_bytes, processes()))
            after, missed = mark.read()
            if abs(after - before) < SAME_BYTES:
                mark.reset()
                private += missed
            peaks[phase] = max(peaks.get(phase, 0), private)

    def record(message: Message) -> None:
        nonlocal phase
        if isinstance(message, Progressed):
            with lock:
                measure()
                phase = message.phase

    def sample() -> None:
        most, read = dict[Phase, int](), 0.0
        while not over:
            now, resident = phase, mark.read()[1] + sum(map(resident_bytes, processes()))
            if resident > most.get(now, 0) or time.monotonic() > read + READ_SECONDS:
                measure()
                most[now], read = max(resident, most.get(now, 0)), time.monotonic()
            time.sleep(SAMPLE_SECONDS)

    sampler = Thread(target=sample)
    try:
        with standby():
            sampler.start()
            Pipeline(folder, Task.read(folder), record, lambda: False).run()
    finally:
        over = True
        sampler.join()
    sys.stdout.write(json.dumps(peaks))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
