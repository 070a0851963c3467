"""What this worker has, for its row and its claims.

CUDA never enters the worker's own process: `python -m worker.device NAME` asks torch, once, for what training will get.
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
"""Where none of these is, torch finds no device, and need not be loaded to say so."""
FREEING_SECONDS = 20.0
DRIVERS_OWN = 256 << 20
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class Device(NamedTuple):
    """A device that training runs on."""

    kind: str
    name: str
    memory: int
    uuid: str = ""
    """By which NVML knows it."""


def ability(settings: Settings) -> Capability:
    """What the worker has at this moment."""
    has = find(settings.device)
    return Capability(has.kind, has.name, has.memory, disk=disk_space.free(settings.scratch))


def used(settings: Settings) -> int | None:
    """Bytes in use on its device; None where NVML is not there to tell, and on the processor."""
    uuid = find(settings.device).uuid
    return devices.used_memory(uuid) if uuid else None


def temperature(settings: Settings) -> int | None:
    """Degrees Celsius of its device; None where NVML is not there to tell, and on the processor."""
    uuid = find(settings.device).uuid
    return devices.temperature(uuid) if uuid else None


def held(settings: Settings, before: int | None) -> int:
    """Bytes that an ended training process has left behind on the device, after a time for the driver to free them.

    `before` is what `used` told before that process started. What the driver takes for itself does not count.
    """
    until = time.monotonic() + FREEING_SECONDS
    while before is not None and (now := used(settings)) is not None and now > before + DRIVERS_OWN:
        if time.monotonic() > until:
            return now - before
        time.sleep(0.5)
    return 0


@cache
def find(name: str) -> Device:
    """The device that the setting names; CalledProcessError where it is not there."""
    if name == CPU or (name == "auto" and not any(Path(driver).exists() for driver in DRIVERS)):
        return processor()
    return asked(name)


def asked(name: str) -> Device:
    """As torch says."""
    asking = [sys.executable, "-m", "worker.device", name]
    return Device(*json.loads(subprocess.run(asking, stdout=subprocess.PIPE, check=True).stdout))


def processor() -> Device:
    """The machine itself, or the part of its memory that the container may use."""
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.exists() else "max"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device(CPU, platform.machine(), memory if limit == "max" else min(memory, int(limit)))


def main(name: str) -> None:
    """Print the device as a list in JSON."""
    import torch

    device = torch.device(("cuda" if torch.cuda.is_available() else CPU) if name == "auto" else name)
    if device.type == CPU:
        found = processor()
    else:
        properties = torch.cuda.get_device_properties(device)
        found = Device(device.type, properties.name, properties.total_memory, str(properties.uuid))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
