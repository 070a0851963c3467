"""Read facts about the machine's devices: NVIDIA driver, torch build, device memory.

This module does not import torch.
"""

import json
import shutil
import subprocess
import sys
from typing import Any

TORCH_PROBE = """
import json, torch
there = torch.cuda.is_available()
memory = [torch.cuda.mem_get_info(index) for index in range(torch.cuda.device_count())] if there else []
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "there": there, "memory": memory}))
"""
SECONDS = 120
QUERY_SECONDS = 10
"""Timeout of a call to nvidia-smi, in seconds. It is short, because the heartbeat of a worker waits for it."""
_given_up: list[subprocess.Popen[str]] = []
"""Calls that did not end in time. A driver that hangs can prevent their end. Until they end, no new call is started."""
MIB = 1 << 20


def driver() -> str | None:
    """Return the driver version and devices as nvidia-smi prints them. Returns None if there is no driver.

    Raises OSError if nvidia-smi fails, and TimeoutExpired if it does not end within `SECONDS`.
    """
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if process.returncode:
        raise OSError(f"nvidia-smi failed: {(process.stdout + process.stderr).strip()}")
    return "; ".join(process.stdout.split("\n")).strip("; ")


def used_memory(uuid: str) -> int | None:
    """Return the bytes of device memory that all processes use. Returns None if nvidia-smi does not report it."""
    mebibytes = _query("memory.used", uuid)
    return None if mebibytes is None else mebibytes * MIB


def temperature(uuid: str) -> int | None:
    """Return the temperature of the device in degrees Celsius. Returns None if nvidia-smi does not report it."""
    return _query("temperature.gpu", uuid)


def _query(field: str, uuid: str) -> int | None:
    _given_up[:] = [process for process in _given_up if process.poll() is None]
    if _given_up:
        return None
    command = ["nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            return int(process.communicate(timeout=QUERY_SECONDS)[0])
        except subprocess.TimeoutExpired:
            process.kill()
            _given_up.append(process)
            return None
    except (OSError, ValueError):
        return None


def torch() -> dict[str, Any] | None:
    """Return facts about the installed torch: `version`, `cuda` version, `there` (finds a device), and `memory`.

    `memory` has a pair (free, total) in bytes per device. Returns None if torch is not installed. Raises OSError if
    torch cannot be loaded, and TimeoutExpired if this takes longer than `SECONDS`.
    """
    command = [sys.executable, "-c", TORCH_PROBE]
    process = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if "No module named 'torch'" in process.stderr:
        return None
    if process.returncode:
        output = process.stderr.strip().splitlines() or [f"the process ended with {process.returncode}"]
        raise OSError(f"torch cannot be loaded: {output[-1]}")
    answer: dict[str, Any] = json.loads(process.stdout)
    return answer
