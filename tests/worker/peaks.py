"""`python -m tests.worker.peaks FOLDER`: do the job in the folder as the training process does, and print what it held.

What is counted is the memory that is nobody else's (RssAnon), of the process and of those that it starts, every few
milliseconds; printed is the most of it in each phase.
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

PAUSE = 0.003


def held(pid: int) -> int:
    """Bytes of a process; none when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def together() -> int:
    """Of this process and its children, whichever of its threads started them."""
    lists = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
    return held(os.getpid()) + sum(held(int(child)) for children in lists for child in children.split())


def main(folder: Path) -> None:
    """See the module."""
    peaks, phase, over = dict[Phase, int](), Phase.LOADING, False

    def hear(message: Message) -> None:
        nonlocal phase
        if isinstance(message, Progressed):
            phase = message.phase

    def watch() -> None:
        while not over:
            now = phase
            peaks[now] = max(peaks.get(now, 0), together())
            time.sleep(PAUSE)

    watcher = Thread(target=watch)
    watcher.start()
    try:
        Pipeline(folder, Task.read(folder), hear, lambda: False).run()
    finally:
        over = True
        watcher.join()
    sys.stdout.write(json.dumps(peaks))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
