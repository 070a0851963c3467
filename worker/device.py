"""The device and disk of this worker, for its row and its claims.

The worker's own process never loads CUDA: `python -m worker.device NAME` asks torch once in a process of its own.
"""

import json
import os
import platform
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

from core.capability import CPU, Capability
from core.infra import devices
from core.settings import Settings
from worker import disk_space

DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Device files of accelerator drivers. If none exists, torch finds no device and need not be loaded."""
FREEING_SECONDS = 20.0
"""Seconds that the driver gets to free the memory of an ended process."""
DRIVER_BYTES = 256 << 20
"""Bytes of device memory that the driver may use for itself."""
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class Device(NamedTuple):
    """A device that training runs on."""

    kind: str
    name: str
    memory: int
    uuid: str = ""
    """The device's id for NVML; empty if there is none."""


def capability(settings: Settings) -> Capability:
    """Return what the worker has now."""
    device = find(settings.device)
    return Capability(device.kind, device.name, device.memory, disk=disk_space.free(settings.scratch))


def used(settings: Settings) -> int | None:
    """Return the bytes in use on the device; None on a CPU or without NVML."""
    uuid = find(settings.device).uuid
    return devices.used_memory(uuid) if uuid else None


def temperature(settings: Settings) -> int | None:
    """Return the temperature of the device in degrees Celsius; None on a CPU or without NVML."""
    uuid = find(settings.device).uuid
    return devices.temperature(uuid) if uuid else None


def unfreed(settings: Settings, before: int | None) -> int:
    """Return the bytes of device memory that an ended training process still occupies; 0 if it was freed in time.

    `before` is the result of `used` before the process started. Waits up to `FREEING_SECONDS`.
    """
    until = time.monotonic() + FREEING_SECONDS
    while before is not None and (now := used(settings)) is not None and now > before + DRIVER_BYTES:
        if time.monotonic() > until:
            return now - before
        time.sleep(0.5)
    return 0


@cache
def find(name: str) -> Device:
    """Return the device that the setting names. Raises CalledProcessError if there is no such device."""
    if name == CPU or (name == "auto" and not any(Path(driver).exists() for driver in DRIVERS)):
        return cpu()
    return ask_torch(name)


def ask_torch(name: str) -> Device:
    """Have torch look up a device in a process of its own."""
    command = [sys.executable, "-m", "worker.device", name]
    return Device(*json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))


def cpu() -> Device:
    """Return the machine as a device. Its memory is the machine's, or the container's limit."""
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.exists() else "max"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device(CPU, platform.machine(), memory if limit == "max" else min(memory, int(limit)))


def main(name: str) -> None:
    """Print the device as a JSON list."""
    import torch

    device = torch.device(("cuda" if torch.cuda.is_available() else CPU) if name == "auto" else name)
    if device.type == CPU:
        result = cpu()
    else:
        properties = torch.cuda.get_device_properties(device)
        result = Device(device.type, properties.name, properties.total_memory, str(properties.uuid))
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
