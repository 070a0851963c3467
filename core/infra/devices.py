"""What this machine has for training: NVIDIA's driver, torch's build, free device memory. Loads no torch itself."""

import json
import shutil
import subprocess
import sys
from typing import Any

LOOK = """
import json, torch
there = torch.cuda.is_available()
memory = [torch.cuda.mem_get_info(index) for index in range(torch.cuda.device_count())] if there else []
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "there": there, "memory": memory}))
"""
SECONDS = 120
TOLD_SECONDS = 10
"""A worker asks before it renews its first lease."""
MIB = 1 << 20


def driver() -> str | None:
    """NVIDIA's driver and its devices in its own words; None where there is no driver. OSError where it is broken."""
    if shutil.which("nvidia-smi") is None:
        return None
    asking = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run(asking, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        raise OSError(f"nvidia-smi says: {(done.stdout + done.stderr).strip()}")
    return "; ".join(done.stdout.split("\n")).strip("; ")


def used(uuid: str) -> int | None:
    """Bytes in use on the device of this UUID, whoever uses them, as NVML counts; None where it cannot tell."""
    mebibytes = _told("memory.used", uuid)
    return None if mebibytes is None else mebibytes * MIB


def temperature(uuid: str) -> int | None:
    """Degrees Celsius of the device of this UUID; None where NVML cannot tell."""
    return _told("temperature.gpu", uuid)


def _told(figure: str, uuid: str) -> int | None:
    asking = ["nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={figure}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(asking, capture_output=True, text=True, timeout=TOLD_SECONDS, check=True)
        return int(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def torch() -> dict[str, Any] | None:
    """Its version, its CUDA, whether it finds a device, (free, total) bytes of each; None where it is not installed."""
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=SECONDS, check=False)
    if "No module named 'torch'" in done.stderr:
        return None
    if done.returncode:
        raise OSError(f"torch cannot be loaded: {done.stderr.strip().splitlines()[-1]}")
    told: dict[str, Any] = json.loads(done.stdout)
    return told
