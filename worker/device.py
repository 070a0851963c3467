"""Measure the device and the disk space of this worker. Both are stored in its row and checked when it claims a job.

The worker process itself never loads CUDA. `python -m worker.device NAME COUNT` starts a separate process that asks
torch once.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from core.capability import CPU, Capability
from core.infra import devices, sandbox
from core.settings import INVALID, Settings
from seft import processor
from worker import disk_space

DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Device files of accelerator drivers. If none of them exists, torch would find no accelerator and is not loaded."""
FREEING_SECONDS = 20.0
"""Maximum seconds to wait until the driver has freed the device memory of a process that ended."""
DRIVER_BYTES = 256 << 20
"""Bytes of device memory that the driver may use for itself."""
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class Device(NamedTuple):
    """The first device that training runs on. The others of a worker are equal."""

    kind: str
    name: str
    memory: int
    """Bytes of memory."""
    bfloat16: bool
    """Whether it has instructions for bfloat16."""
    uuids: Sequence[str] = ()
    """Ids of all devices of the worker for NVML, NVIDIA's library for monitoring. Empty if they have none."""


def capability(settings: Settings) -> Capability:
    """Return what this worker can run now: its device, memory and free disk space."""
    device, free = find(settings.device, settings.devices), disk_space.free(settings.scratch)
    devices = settings.devices if settings.devices == 1 or sandbox.can_leave_network() else 1
    return Capability(device.kind, device.name, device.memory, free, devices, bfloat16=device.bfloat16)


def used_memory(settings: Settings) -> list[int] | None:
    """Return the bytes of memory in use on each device. Returns None on a CPU or without NVML."""
    return _known(map(devices.used_memory, find(settings.device, settings.devices).uuids))


def temperature(settings: Settings) -> int | None:
    """Return the temperature of the hottest device in degrees Celsius. Returns None on a CPU or without NVML."""
    found = _known(map(devices.temperature, find(settings.device, settings.devices).uuids))
    return max(found) if found else None


def _known(values: Iterable[int | None]) -> list[int] | None:
    """Return the values, or None if there are none or one of them is None."""
    known = list[int]()
    for value in values:
        if value is None:
            return None
        known.append(value)
    return known or None


def unfreed_memory(settings: Settings, before: list[int] | None) -> int:
    """Return the bytes of memory that an ended training process still occupies on a device.

    Returns 0 if they were freed or cannot be measured. `before` is the result of `used_memory` before the process
    started. Waits up to `FREEING_SECONDS` for the memory.
    """
    until = time.monotonic() + FREEING_SECONDS
    while before is not None and (now := used_memory(settings)) is not None:
        unfreed = max(after - used for used, after in zip(before, now, strict=True))
        if unfreed <= DRIVER_BYTES:
            break
        if time.monotonic() > until:
            return unfreed
        time.sleep(0.5)
    return 0


@cache
def find(name: str, count: int) -> Device:
    """Return the first device of a worker, for the values of SEFT_DEVICE and SEFT_DEVICES.

    Exits with the status INVALID if this machine does not have `count` GPUs of the same kind. On a CPU, `count` is not
    checked.
    """
    if name == CPU or (name == "auto" and not any(Path(driver).exists() for driver in DRIVERS)):
        return cpu()
    return ask_torch(name, count)


def ask_torch(name: str, count: int) -> Device:
    """Return the first device of a worker, as torch reports it. Torch is loaded in a separate process."""
    command = [sys.executable, "-m", "worker.device", name, str(count)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        reason = (answer.stderr.strip().splitlines() or ["no answer"])[-1]
        sys.stderr.write(
            f"SEFT_DEVICE and SEFT_DEVICES must name devices of this machine; they are {name!r} and {count}. The error"
            f" is: {reason.removesuffix('.')}. Example: SEFT_DEVICE=cpu\n"
        )
        raise SystemExit(INVALID)
    device = Device(*json.loads(answer.stdout))
    return device._replace(uuids=tuple(device.uuids))


def cpu() -> Device:
    """Return the CPU as a device. Its memory is the memory of the machine, or the limit of the container if lower."""
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.exists() else "max"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    usable = memory if limit == "max" else min(memory, int(limit))
    return Device(CPU, cpu_name(), usable, processor.has_bfloat16())


def cpu_name() -> str:
    """Return the model of the CPU and the number of cores that this process may use, such as `AMD EPYC, 2 cores`."""
    return f"{processor.name() or platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def main(name: str, count: int) -> None:
    """Print the first device of a worker as a JSON list. Raises ValueError unless the others are of the same kind."""
    import torch

    from seft.devices import choose_device, has_bfloat16

    device = torch.device(choose_device(name))
    if device.type == CPU:
        result = cpu()
    else:
        properties, first = torch.cuda.get_device_properties(device), device.index or 0
        uuids = list[str]()
        for number in range(first, first + count):
            other = torch.cuda.get_device_properties(number)
            uuids.append(str(other.uuid))
            if (other.name, other.total_memory) != (properties.name, properties.total_memory):
                needed = f"{properties.name} with {properties.total_memory} bytes, as device {first}"
                raise ValueError(f"device {number} must be {needed}; it is {other.name} with {other.total_memory}")
        memory, bfloat16 = properties.total_memory, has_bfloat16(str(device))
        result = Device(device.type, properties.name, memory, bfloat16, uuids)
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
