"""A fake training process: it follows the protocol of the real one, but runs a scripted scenario and trains nothing.

`python -m tests.worker.stand_in SCENARIO FOLDER PIPE PARENT STORE`. Pipes, files and signals are real. There is no
torch.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import BinaryIO

from core.states import Phase
from seft.checkpoint.facts import ListedFile
from seft.report import Change, Evolved
from worker.format_store import FormatStore
from worker.parent_death import exit_with_parent
from worker.protocol import (
    END_TRAINING,
    RESULT,
    RESUME,
    STATE,
    Failed,
    Finished,
    Measured,
    MeasureFile,
    Message,
    NoDiskSpace,
    Progressed,
    Reading,
    Refused,
    Saved,
    Scored,
    Stopped,
    Storing,
    Task,
    TopologyEvolved,
    encode,
)

SMALL, LARGE = "model.seft", "model-BF16.gguf"
FORMAT = bytes(range(256)) * ((21 << 20) // 256)
"""Content of a file that is uploaded in more than one part."""
SAVED_BYTES = 64 << 30
"""Size of a state that a disk needs many minutes to write. The file has no blocks on the disk."""
HANG = 3600
"""Seconds for which a process hangs: longer than pytest lets a test run."""


class StandIn:
    def __init__(self, folder: Path, pipe: int, store: int) -> None:
        self.folder, self.pipe, self.formats = folder, pipe, FormatStore(store)
        self.task = Task.read(folder)

    def say(self, message: Message) -> None:
        os.write(self.pipe, encode(message))

    def save(self, step: int, **files: str) -> None:
        folder = self.folder / RESUME / str(step)
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / name).write_text(text)
        self.say(Saved(step=step))

    def report(self) -> None:
        self.say(Scored(scores={"dense": 20.63, "pruned": 0.1 + 0.2}))
        self.say(Progressed(phase=Phase.TRAINING, progress=0.5, step=3))
        for step in (1, 2, 3):
            self.say(Measured(step=step, values={"loss": 3.0 / step}))
        self.say(Measured(step=3, values={"loss": 0.5}))

    def evolve(self, *steps: int) -> None:
        change = Change(dropped=2, grown=2, reactivated=1, pruned=1)
        for step in steps:
            self.say(TopologyEvolved(event=Evolved.of(step, {"up_proj": change}, 0.6)))

    def finish(self) -> None:
        result = self.folder / RESULT
        result.mkdir()
        (result / "model.safetensors").write_text("weights")
        entry = {"name": "model.safetensors", "size": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}
        (result / "manifest.json").write_text(f'{{"files": [{str(entry).replace(chr(39), chr(34))}]}}')
        self.say(Finished(step=3, scores={"dense": 1.0, "pruned": 3.0, "repaired": 2.0}, measured={"zeros": 6}))

    # The scenarios.

    def evolve_many_experts(self) -> None:
        change = Change(dropped=123456, grown=123456, reactivated=123456, pruned=123456)
        layers = {f"model.layers.{block}.mlp.experts.{n}.gate_proj": change for block in range(100) for n in range(125)}
        line = encode(TopologyEvolved(event=Evolved.of(1, layers, 0.6)))
        while line:
            line = line[os.write(self.pipe, line) :]
        self.finish()

    def succeed(self) -> None:
        self.report()
        self.save(0, pruned="p", run="r0")
        self.save(3, run="r3")
        self.finish()

    def succeed_slowly(self) -> None:
        time.sleep(0.3)
        self.finish()

    def reject_the_state(self) -> None:
        if self.task.resume is None:
            self.report()
            self.succeed_when_resumed()
        self.say(Refused(message="the state was written by other software"))
        self.evolve(1)
        self.say(Measured(step=1, values={"loss": 3.0}))
        self.save(1, run="r1")
        self.wait_until_stored(1)
        sys.exit("power cut")

    def succeed_when_resumed(self) -> None:
        if self.task.resume is None:
            self.save(0, pruned="p", run="r0")
            self.save(3, run="r3")
            self.evolve(3, 6)
            self.wait_until_stored(3)
            sys.exit("power cut")
        state = {path.name: path.read_text() for path in (self.folder / STATE).iterdir()}
        assert state == {"pruned": "p", "run": "r3"}, state
        self.evolve(6, 9)
        self.finish()

    def evaluate_between_steps(self) -> None:
        for step in range(3):
            self.say(Progressed(phase=Phase.TRAINING, progress=0.1, step=step))
        for _ in range(20):
            time.sleep(0.1)
            self.say(Progressed(phase=Phase.TRAINING, progress=0.2, step=2))
        self.finish()

    def report_and_save(self) -> None:
        self.report()
        self.save(3, pruned="p", run="r3")
        time.sleep(HANG)

    def write_invalid_manifest(self) -> None:
        (self.folder / RESULT).mkdir()
        (self.folder / RESULT / "manifest.json").write_text("no manifest")
        self.say(Finished(step=3, scores={}, measured={}))

    def finish_with_name(self, name: str) -> None:
        """Finish with a result whose manifest names one file."""
        (self.folder / RESULT).mkdir(exist_ok=True)
        entry = {"name": name, "size": 7, "sha256": "0" * 64}
        (self.folder / RESULT / "manifest.json").write_text(json.dumps({"files": [entry]}))
        self.say(Finished(step=3, scores={}, measured={}))

    def name_a_file_above(self) -> None:
        self.finish_with_name("../job.json")

    def link_a_result(self) -> None:
        (self.folder / RESULT).mkdir()
        (self.folder / RESULT / "weights").symlink_to(self.folder.parent.parent / "secret")
        self.finish_with_name("weights")

    def link_a_state(self) -> None:
        (self.folder / RESUME / "3").mkdir(parents=True)
        (self.folder / RESUME / "3" / "run").symlink_to(self.folder.parent.parent / "secret")
        self.say(Saved(step=3))
        time.sleep(HANG)

    def link_the_states(self) -> None:
        """Let the folder of the states be a link to a folder that has a folder with the step as its name."""
        (self.folder / RESUME).symlink_to(self.folder.parent.parent)
        self.say(Saved(step=3))
        time.sleep(HANG)

    def write(self, name: str, content: bytes) -> ListedFile:
        return self.formats.write(name, lambda sink: sink.write(content))

    def finish_with_formats(self, **files: bytes) -> None:
        """Store files, and finish with a result whose manifest names them."""
        self.say(Storing())
        entries = [self.write(name, content) for name, content in files.items()]
        (self.folder / RESULT).mkdir(exist_ok=True)
        (self.folder / RESULT / "manifest.json").write_text(json.dumps({"files": [each._asdict() for each in entries]}))
        self.say(Finished(step=3, scores={}, measured={}))

    def store(self) -> None:
        self.finish_with_formats(**{SMALL: FORMAT[:1000], LARGE: FORMAT})

    def store_and_read(self) -> None:
        self.say(Storing())
        self.write(LARGE, FORMAT)
        stored = self.formats.open(LARGE)
        assert stored.size == len(FORMAT)
        assert stored.read(0, stored.size) == FORMAT
        assert stored.read(12345, 7) == FORMAT[12345:12352]
        self.finish_with_formats(**{SMALL: stored.read(0, 1000)})

    def store_until_killed(self) -> None:
        """Store a file. The first attempt writes more than a part of it and then nothing."""
        if self.folder.name == "1":
            self.write_a_part_and_hang()
        self.store()

    def write_a_part_and_hang(self) -> None:
        self.say(Storing())

        def write(sink: BinaryIO) -> None:
            sink.write(FORMAT[:-1000])
            time.sleep(HANG)

        self.formats.write(LARGE, write)

    def write_without_end(self) -> None:
        self.say(Storing())

        def write(sink: BinaryIO) -> None:
            while True:
                sink.write(FORMAT)

        self.formats.write(LARGE, write)

    def store_under_another_name(self) -> None:
        self.finish_with_formats(**{"manifest.json": b"{}"})

    def store_a_file_twice(self) -> None:
        self.say(Storing())
        self.write(SMALL, b"one")
        self.write(SMALL, b"two")

    def store_outside_of_the_prefix(self) -> None:
        self.finish_with_formats(**{"../../../" + SMALL: b"one"})

    def read_what_is_not_stored(self) -> None:
        self.say(Storing())
        self.formats.open("../resume/0/run")

    def send_a_long_request(self) -> None:
        self.say(Storing())
        self.formats.ask(MeasureFile(name="a" * (1 << 17)))

    def send_no_request(self) -> None:
        self.say(Storing())
        Connection(self.formats.fileno()).send({"type": "measure"})
        time.sleep(HANG)

    def lie_about_a_stored_file(self) -> None:
        self.say(Storing())
        entry = self.write(SMALL, b"one")
        (self.folder / RESULT).mkdir()
        files = [entry._replace(sha256="0" * 64)._asdict()]
        (self.folder / RESULT / "manifest.json").write_text(json.dumps({"files": files}))
        self.say(Finished(step=3, scores={}, measured={}))

    def hide_a_stored_file(self) -> None:
        self.say(Storing())
        self.write(SMALL, b"one")
        self.finish()

    def crash(self) -> None:
        sys.stderr.write("all the weights \0fell out")
        sys.stderr.flush()
        os._exit(7)

    def fail_with_user_error(self) -> None:
        self.say(Failed(user_error=True, code="not_enough_text", message="Give more text."))

    def report_texts_with_nul(self) -> None:
        self.say(Scored(scores={"a\0": 1.0}))
        os.write(
            self.pipe, json.dumps({"type": "failed", "user_error": True, "code": "a\0", "message": "b\0"}).encode()
        )
        os.write(self.pipe, b"\n")
        time.sleep(HANG)

    def write_garbage(self) -> None:
        os.write(self.pipe, b"hello\n")
        time.sleep(HANG)

    def hang_with_child(self) -> None:
        """Ignore SIGTERM, as does the process that it starts; only SIGKILL ends them."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        other = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({HANG})"])
        (self.folder / "pids.new").write_text(f"{os.getpid()} {other.pid}")
        (self.folder / "pids.new").rename(self.folder / "pids")  # atomic: a reader finds all of it
        self.say(Progressed(phase=Phase.TRAINING, progress=0.5, step=1))
        time.sleep(HANG)

    def save_when_asked(self) -> None:
        if self.task.resume == 5:
            self.finish()
            return
        signals: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
        self.say(Progressed(phase=Phase.TRAINING, progress=0.5, step=4, remaining=3600))
        while not signals:
            time.sleep(0.02)
        self.save(5, pruned="p", run="r5")
        self.say(Stopped())

    def read_forever(self) -> None:
        self.say(Reading(records=7))
        time.sleep(HANG)

    def get_stuck(self) -> None:
        for step in range(1, 6):
            self.say(Progressed(phase=Phase.TRAINING, progress=0.5, step=step))
            time.sleep(0.01)
        while True:
            time.sleep(0.1)
            self.say(Scored(scores={"dense": 20.63}))

    def hang_while_saving(self) -> None:
        for step in range(4):
            self.say(Progressed(phase=Phase.TRAINING, progress=0.5, step=step))
        (folder := self.folder / RESUME / "3").mkdir(parents=True)
        with (folder / "run").open("wb") as file:
            file.truncate(SAVED_BYTES)
        self.say(Scored(scores={"dense": 20.63}))
        time.sleep(HANG)

    def fill_the_disk(self) -> None:
        (self.folder / "half").write_bytes(bytes(1 << 16))
        self.say(NoDiskSpace(message="1048576 bytes are missing.", needed=1 << 20))

    def run_out_of_memory(self) -> None:
        self.say(Progressed(phase=Phase.TRAINING, progress=0.5, step=1))
        self.say(Failed(user_error=True, code="out_of_memory", message="CUDA out of memory."))

    def lose_the_verifier(self) -> None:
        self.say(Progressed(phase=Phase.EXPORTING, progress=0.9, step=3))
        self.say(Failed(user_error=False, code="verifier_killed", message="It was killed."))

    def stop_when_asked(self) -> None:
        self.say(Progressed(phase=Phase.TRAINING, progress=0.5, step=4))
        while not (self.folder / END_TRAINING).exists():
            time.sleep(0.02)
        self.finish()

    def save_and_wait(self) -> None:
        self.save(0, run="r0")
        time.sleep(HANG)

    def wait_until_stored(self, step: int) -> None:
        while (self.folder / RESUME / str(step)).exists():
            time.sleep(0.02)


def main(scenario: str, folder: str, pipe: str, parent: str, store: str) -> None:
    exit_with_parent(int(parent))
    (Path(folder) / "environment").write_text("\n".join([*os.environ, tempfile.gettempdir()]))
    getattr(StandIn(Path(folder), int(pipe), int(store)), scenario)()


if __name__ == "__main__":
    main(*sys.argv[1:])
