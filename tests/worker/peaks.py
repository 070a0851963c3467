"""`python -m tests.worker.peaks FOLDER`: run the job in the folder and print the peak memory of each phase as JSON.

The memory is the private memory (RssAnon) of the process and its children, sampled every few milliseconds.
"""

import json
import os
import sys
import time
from pathlib import Path
from threading import Thread

from core.states import Phase
from worker.pipeline import Pipeline
from worker.protocol import Message, Progressed, Task

SAMPLE_SECONDS = 0.003


def private_bytes(pid: int) -> int:
    """Return the private memory of a process; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def total_bytes() -> int:
    """Return the private memory of this process and of the children of all its threads."""
    lists = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
    return private_bytes(os.getpid()) + sum(
        private_bytes(int(child)) for children in lists for child in children.split()
    )


def main(folder: Path) -> None:
    """Run the job and print the peaks."""
    peaks, phase, over = dict[Phase, int](), Phase.LOADING, False

    def record(message: Message) -> None:
        nonlocal phase
        if isinstance(message, Progressed):
            phase = message.phase

    def sample() -> None:
        while not over:
            now = phase
            peaks[now] = max(peaks.get(now, 0), total_bytes())
            time.sleep(SAMPLE_SECONDS)

    sampler = Thread(target=sample)
    sampler.start()
    try:
        Pipeline(folder, Task.read(folder), record, lambda: False).run()
    finally:
        over = True
        sampler.join()
    sys.stdout.write(json.dumps(peaks))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
