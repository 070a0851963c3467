"""The peak memory of each phase of a job, measured in a process of its own.

`python -m tests.worker.peaks FOLDER CYCLES` runs the job in the folder, with this many cycles of DSnoT, and prints the
peaks as JSON. The memory is the private memory (Pss_Anon) of the process and its children, in which a page that two
processes share counts once. A peak of a process between two samples is not lost: the kernel keeps the highest resident
memory (VmHWM in proc(5)), and each sample resets it. The kernel needs tens of milliseconds to sum the private memory,
and the process gets no memory meanwhile. So it is summed only if the processes have grown by 1 MB, or after a while.
The copy of the process that verifies the checkpoint stops itself before it ends, and continues when its peak has been
measured.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import RLock, Thread
from typing import Any

from core.specs import JobSpec
from core.states import Phase
from local.processes import children_of
from seft.checkpoint import verify
from seft.prune import dsnot
from tests.waiting import STOPPED, state
from worker import environment
from worker.pipeline import Pipeline
from worker.protocol import DATA, Message, Progressed, Task

SAMPLE_SECONDS = 0.01
READ_SECONDS = 1.0
"""Seconds after which the memory is summed again although no process has grown."""
GROWN_BYTES = 10**6
"""A smaller growth since the last sum is not measured at once. It is a thousandth of what the tests compare."""
SAME_BYTES = 2 * 2**20
"""If the memory changed by less during a sum, what was missed before can be added to the sum."""
message_of = verify.message_of
FIELDS = ("VmHWM:", "VmRSS:", "RssAnon:", "RssFile:")
"""Fields of `status` of a process: its highest and its present memory, and the private part and files in the latter."""
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


def measure_peaks(job: Path, dsnot_cycles: int = dsnot.CYCLES) -> dict[Phase, int]:
    """Run the job in the folder in a new process. Return the peak memory of each phase in bytes."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.worker.peaks", str(job), str(dsnot_cycles)],
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


class HighWaterMark:
    """The highest resident memory of a process, which the kernel keeps."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")
        self._files = 0

    def read(self) -> tuple[int, int]:
        """Return the private memory, and the bytes by which it was higher at its peak since the last `reset`.

        The second number does not include files that were mapped at an earlier call and are not mapped now. Both are 0
        if the process has ended.
        """
        try:
            lines = (line.split() for line in (self._folder / "status").read_text().splitlines())
        except (FileNotFoundError, ProcessLookupError):
            return 0, 0
        sizes = {words[0]: int(words[1]) * 1024 for words in lines if words[0] in FIELDS}
        if len(sizes) < len(FIELDS):  # it is ending
            return 0, 0
        highest, resident, private, files = (sizes[field] for field in FIELDS)
        self._files = max(self._files, files)
        return private, max(0, highest - resident - (self._files - files))

    def reset(self) -> None:
        """Set the mark to the present memory."""
        with suppress(FileNotFoundError, ProcessLookupError):
            (self._folder / "clear_refs").write_text(RESET_HIGHEST)
        self._files = 0


def processes() -> list[int]:
    """Return this process and the children of all its threads."""
    return [os.getpid(), *children_of(os.getpid())]


def stopped() -> list[int]:
    """Return the processes that wait until they were measured."""
    return [pid for pid in processes() if state(pid) == STOPPED]


def resume(waiting: Sequence[int]) -> None:
    """Let processes that have stopped themselves continue."""
    for pid in waiting:
        os.kill(pid, signal.SIGCONT)


def verified(*arguments: Any, **more: Any) -> str:
    """Verify a folder as `verify.message_of` does, and stop this process, which is a copy, until it was measured."""
    try:
        return message_of(*arguments, **more)
    finally:
        os.kill(os.getpid(), signal.SIGSTOP)


def main(folder: Path) -> None:
    """Run the job and print the peaks."""
    peaks, phase, over, lock = dict[Phase, int](), Phase.LOADING, False, RLock()
    marks = dict[int, HighWaterMark]()

    def read_marks() -> list[tuple[int, int]]:
        return [marks.setdefault(pid, HighWaterMark(pid)).read() for pid in processes()]

    def measure() -> None:
        with lock:
            before = sum(size for size, _ in read_marks())
            private = sum(map(private_bytes, processes()))
            after = read_marks()
            if abs(sum(size for size, _ in after) - before) < SAME_BYTES:
                private += max(missed for _, missed in after)
                for mark in marks.values():
                    mark.reset()
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
            with lock:
                now, resident = phase, sum(map(sum, read_marks()))
            waiting = stopped()
            if waiting or resident >= most.get(now, 0) + GROWN_BYTES or time.monotonic() > read + READ_SECONDS:
                measure()
                most[now], read = max(resident, most.get(now, 0)), time.monotonic()
            resume(waiting)
            time.sleep(SAMPLE_SECONDS)

    sampler = Thread(target=sample, daemon=True)
    try:
        verify.message_of = verified
        with verify.standby():
            sampler.start()
            Pipeline(folder, Task.read(folder), record, lambda: False).run()
    finally:
        over = True
        sampler.join()
    sys.stdout.write(json.dumps(peaks))


if __name__ == "__main__":
    dsnot.CYCLES = int(sys.argv[2])
    main(Path(sys.argv[1]))
