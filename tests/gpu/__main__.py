"""`python -m tests.gpu`: run everything that needs a card, each part with a time limit, and write one JSON file.

`make gpu` runs this in the environment of `tests.gpu.environment`. A part that fails does not stop the others. Without
a card, the parts for large models are skipped, and the others run on the CPU at a small size, so that they are tested.
The file is written after every part. Ends with 1 if a part failed or exceeded its limit.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.arguments import one_of
from local.folder import bypass_proxies
from tests.gpu.parts import PARTS, Part

TAIL = 4000
"""Characters of the end of a part's output that are kept."""
MACHINE = """
import importlib.metadata, json, torch
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
card = None
if torch.cuda.is_available():
    found = torch.cuda.get_device_properties(0)
    card = {"name": found.name, "bytes": found.total_memory, "capability": f"{found.major}.{found.minor}"}
versions = {name: version(name) for name in ("torch", "triton", "transformers", "numpy", "safetensors")}
print(json.dumps({"card": card, "cuda": torch.version.cuda, "versions": versions}))
"""

Status = Literal["passed", "failed", "timed out", "skipped"]


@dataclass(frozen=True, slots=True)
class Result:
    """How a part ended."""

    status: Status
    seconds: float = 0.0
    reason: str | None = None
    """Why the part was skipped."""
    output: str = ""
    """The end of what it printed."""
    figures: Any = None
    """The JSON that it wrote."""


def main() -> int:
    """Run the parts and return the exit code."""
    arguments = _arguments()
    bypass_proxies()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that `run` ends its processes
    machine = find_machine()
    small = arguments.small or not machine["card"]
    memory = machine["card"]["bytes"] if machine["card"] else 0
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(arguments.out.read_text()) if arguments.parts and arguments.out.exists() else {}
    same = (before.get("machine"), before.get("small")) == (machine, small)
    done: dict[str, Any] = before["parts"] if same else {}
    for name in arguments.parts or PARTS:
        sys.stdout.write(f"{name} ... ")
        sys.stdout.flush()
        result = run(PARTS[name], small=small, card_bytes=memory, model=arguments.model, out=arguments.out)
        sys.stdout.write(f"{result.status}, {result.seconds:.0f} s\n")
        done[name] = asdict(result)
        arguments.out.write_text(json.dumps({"machine": machine, "small": small, "parts": done}, indent=1) + "\n")
    bad = [name for name, each in done.items() if each["status"] in {"failed", "timed out"}]
    for name in bad:
        sys.stdout.write(f"\n--- the end of the output of {name} ---\n{done[name]['output']}\n")
    sys.stdout.write(f"{arguments.out}: {len(done)} parts, {len(bad)} of them failed\n")
    return int(bool(bad))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts",
        nargs="*",
        type=one_of("part", PARTS),
        help=f"parts to run: {', '.join(PARTS)}; the JSON keeps the others; default: all",
    )
    parser.add_argument("--out", type=Path, default=Path("build/gpu.json"), help="JSON file; default: build/gpu.json")
    parser.add_argument("--small", action="store_true", help="run at a small size, as without a card")
    parser.add_argument("--model", type=Path, help="SmolLM2, as a folder or GGUF file; default: see tests.gpu.service")
    return parser.parse_args()


def find_machine() -> dict[str, Any]:
    """Return what the results depend on: processor, card and versions."""
    answer = subprocess.run([sys.executable, "-c", MACHINE], stdout=subprocess.PIPE, text=True, check=True).stdout
    here = {"system": platform.platform(), "python": platform.python_version(), "cores": len(os.sched_getaffinity(0))}
    found: dict[str, Any] = json.loads(answer)
    return {**found, **here, "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}


def run(part: Part, *, small: bool, card_bytes: int, model: Path | None, out: Path) -> Result:
    """Run a part in a process group of its own, and kill the group when its time is over.

    `card_bytes` is the memory of the card, or 0 without a card.
    """
    words = part.small if small else part.full
    if words is None:
        return Result("skipped", reason="this machine has no card" if not card_bytes else "it has no small size")
    if not small and card_bytes < part.card_bytes:
        needed = f"it needs a card with {part.card_bytes // 10**9} GB of memory"
        return Result("skipped", reason=f"{needed}; this one has {card_bytes // 10**9}")
    figures = out.with_suffix(".part.json").resolve()
    figures.unlink(missing_ok=True)
    command = [
        word.replace("{out}", str(figures)).replace("{device}", "cuda" if card_bytes else "cpu") for word in words
    ]
    if part.takes_model and model:
        command += ["--model", str(model.resolve())]
    began = time.monotonic()
    # The temporary files of a part that is killed are deleted too.
    with (
        tempfile.TemporaryDirectory(prefix="seft-gpu-", ignore_cleanup_errors=True) as temporary,
        subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "TMPDIR": temporary},
        ) as process,
    ):
        try:
            output, _ = process.communicate(timeout=part.seconds)
            status: Status = "failed" if process.returncode else "passed"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            status = "timed out"
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    found = json.loads(figures.read_text()) if figures.exists() else None
    figures.unlink(missing_ok=True)
    return Result(status, time.monotonic() - began, None, output.decode(errors="replace")[-TAIL:], found)


if __name__ == "__main__":
    sys.exit(main())
