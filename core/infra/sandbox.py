"""Confine a process that runs with data of tenants: to some folders, without a network, and inside its process group.

Three parts of the Linux kernel do this, and none of them needs root:

- Landlock (Linux 5.13) limits which files the process can open. It also keeps the process from reading the memory and
  the environment of other processes and, since Linux 6.12, from sending them signals.
- A seccomp filter refuses system calls: sockets other than Unix sockets, leaving the process group, reading other
  processes, limiting their resources, and changing the permissions of files, which Landlock does not check.
- `no_new_privs` keeps programs such as `sudo` from giving the process more rights.

The limits also hold for every program that the process starts, and cannot be removed. `missing` names the parts that
the kernel or the container engine does not offer.
"""

import ctypes
import errno
import fcntl
import os
import platform
import socket
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

LOCAL_SOCKETS = (socket.AF_UNIX,)
"""Families of sockets that a confined process may open."""
CONNECTING_SOCKETS = (*LOCAL_SOCKETS, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
"""The same for the processes of a job on several devices, which connect to each other. See `leave_network`. To find the
loopback interface, they ask the kernel through AF_NETLINK. They may use only its protocol ROUTE (0)."""

NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000
"""Flags of `unshare`: a user namespace, a network namespace."""
GET_FLAGS, SET_FLAGS, UP = 0x8913, 0x8914, 1
"""Requests of `ioctl` for the flags of a network interface, and the flag that it is up."""
CAPABILITIES_VERSION = 0x20080522
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 4, 22, 24, 38
SECCOMP_MODE_FILTER, SECCOMP_GET_ACTION_AVAIL = 2, 2
SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO = 0x7FFF0000, 0x00050000
X32_CALLS = 0x40000000
"""On x86-64, system calls from this number on are those of another ABI."""
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
PATH_BENEATH, ABI_VERSION = 1, 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE, IOCTL_DEVICE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEVICE
"""The rights that a rule for a single file may give."""
RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Number of file system rights in each version of Landlock. Versions after 5 have the same rights as version 5."""
SCOPES = 0b11
"""The process can connect to abstract Unix sockets and send signals only within the sandbox. Needs Landlock 6."""


class Machine(NamedTuple):
    """A processor architecture: its id for seccomp, and the numbers of system calls."""

    audit: int
    socket: int
    seccomp: int
    prlimit: int
    """prlimit64, which a process may call for itself."""
    refused: tuple[int, ...]
    """setsid, setpgid, ptrace, process_vm_readv, process_vm_writev.

    For files: truncate, which Landlock does not check before Linux 6.2; and these, which it never checks: chmod,
    fchmod, fchmodat, setxattr, lsetxattr, fsetxattr, removexattr, lremovexattr, fremovexattr.
    """


REFUSED = (438, 425, 452, 463, 466)
"""The same on all architectures: pidfd_getfd; io_uring_setup, because a filter does not see the sockets that a process
opens with it; fchmodat2, setxattrat, removexattrat."""
MACHINES = {
    "x86_64": Machine(
        *(0xC000003E, 41, 317, 302),
        (*(112, 109, 101, 310, 311), 76, *(90, 91, 268), *(188, 189, 190, 197, 198, 199), *REFUSED),
    ),
    "aarch64": Machine(
        *(0xC00000B7, 198, 277, 261),
        (*(157, 154, 117, 270, 271), 45, *(52, 53), *(5, 6, 7, 14, 15, 16), *REFUSED),
    ),
}

ROOT = Path(__file__).parents[2]
"""Folder with the packages of the service."""
SYSTEM = (
    *("/bin", "/sbin", "/usr", "/lib", "/lib32", "/lib64", "/proc", "/sys"),
    # Only the files of /etc that the C library, OpenSSL and Python read: on some machines it has secrets.
    *(f"/etc/{name}" for name in ("group", "hosts", "ld.so.cache", "localtime", "mime.types", "nsswitch.conf")),
    *("/etc/os-release", "/etc/passwd", "/etc/ssl/openssl.cnf", "/etc/timezone"),
)
DEVICES = ("null", "zero", "full", "random", "urandom", "shm", "nvidia*", "dri", "kfd", "dxg")
"""Patterns of files and folders in /dev that a confined process may read and write."""


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def missing(devices: int = 1) -> list[str]:
    """Return which protections this kernel, or the container engine, does not offer. Each text is a part of a sentence.

    `devices` is the number of devices of the worker.
    """
    flaws = []
    if (abi := landlock_abi()) < 1:
        flaws.append("Landlock, so a training process could read files of the service and secrets of its processes")
    elif abi < 6:
        flaws.append("the scopes of Landlock (Linux 6.12), so a training process could kill processes of its user")
    if not _has_seccomp():
        flaws.append("seccomp, so a training process could use the network, end processes and change permissions")
    if devices > 1 and not can_leave_network():
        flaws.append("network namespaces with a loopback interface, so no job runs on several devices")
    return flaws


def landlock_abi() -> int:
    """Return the version of Landlock that this kernel has, or 0 if it has none."""
    return max(0, int(_libc().syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ABI_VERSION)))


def _has_seccomp() -> bool:
    machine = MACHINES.get(platform.machine())
    action = ctypes.c_uint32(SECCOMP_RET_ERRNO)
    available = machine and _libc().syscall(machine.seccomp, SECCOMP_GET_ACTION_AVAIL, 0, ctypes.byref(action)) == 0
    return bool(available)


@cache
def can_leave_network() -> bool:
    """Return whether `leave_network` works here. A child process tries it."""
    if (process := os.fork()) == 0:
        with suppress(OSError):
            leave_network()
            os._exit(0)
        os._exit(1)
    return os.waitpid(process, 0)[1] == 0


def leave_network() -> None:
    """Move this process to a network namespace that has only a loopback interface. Call before any thread starts.

    The processes of a job on several devices connect to each other over this interface. Their libraries listen on all
    interfaces and trust every client, so these processes must not share a network with others. Raises OSError if
    the kernel or the container engine does not allow this.
    """
    if _libc().unshare(NEW_USER | NEW_NETWORK) != 0:
        raise OSError(ctypes.get_errno(), f"unshare: {os.strerror(ctypes.get_errno())}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        name = b"lo".ljust(16, b"\0")
        flags = struct.unpack_from("H", fcntl.ioctl(any_socket, GET_FLAGS, name + bytes(24)), 16)[0]
        fcntl.ioctl(any_socket, SET_FLAGS, name + struct.pack("H22x", flags | UP))
    header, nothing = struct.pack("Ii", CAPABILITIES_VERSION, 0), bytes(24)
    if _libc().capset(header, nothing) != 0:  # drop what the new user namespace gave
        raise OSError(ctypes.get_errno(), f"capset: {os.strerror(ctypes.get_errno())}")


def code(variables: Mapping[str, str], packages: Iterable[str]) -> list[Path]:
    """Return the folders and files with the programs and libraries of a process.

    Of the service's folder, only `packages` are included, because the folder can contain secrets of the operator.
    `variables` is the environment of the process.
    """
    own = [ROOT / name for name in packages]
    imported = [Path(entry) for entry in sys.path if entry and not ROOT.is_relative_to(Path(entry).resolve())]
    libraries = [Path(entry) for entry in variables.get("LD_LIBRARY_PATH", "").split(":") if entry]
    return [*own, Path(sys.prefix), Path(sys.base_prefix), *imported, *libraries]


def forbid_memory_access() -> None:
    """Keep other processes of this user from reading this process's memory, environment and open files."""
    _prctl(PR_SET_DUMPABLE, 0)


def confine(
    readable: Iterable[Path],
    listable: Iterable[Path],
    writable: Iterable[Path],
    sockets: Sequence[int] = LOCAL_SOCKETS,
) -> None:
    """Confine this thread, and every program that it then executes or starts, permanently.

    Execute a program afterwards: this ends the other threads, which are not confined, and drops the capabilities of
    root.

    The program can read the files of the system and of the folders or files `readable`, list the folders below
    `listable` without reading files there, and do everything below `writable` except execute. Paths that do not exist
    are skipped. It can open sockets of the families `sockets`. Protections that are `missing` are skipped, too.
    """
    with suppress(OSError):  # only root may do this, and a number above the last capability is an error
        for capability in range(64):
            _prctl(PR_CAPBSET_DROP, capability)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    if landlock_abi():
        _restrict_files(readable, listable, writable)
    if _has_seccomp():
        _filter_system_calls(MACHINES[platform.machine()], sockets)


def _restrict_files(readable: Iterable[Path], listable: Iterable[Path], writable: Iterable[Path]) -> None:
    abi = landlock_abi()
    everything = (1 << RIGHTS_BY_ABI.get(abi, 16)) - 1
    attributes = struct.pack("QQQ", everything, 0, SCOPES)[: 24 if abi >= 6 else 8]
    ruleset = _call(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    devices = [device for pattern in DEVICES for device in Path("/dev").glob(pattern)]
    grants = [
        (READ_FILE | READ_DIR | EXECUTE, [*map(Path, SYSTEM), *readable]),
        (READ_DIR, listable),
        (everything & ~EXECUTE, [*devices, *writable]),
    ]
    for rights, paths in grants:
        for path in paths:
            with suppress(FileNotFoundError):
                _allow(ruleset, path, rights & everything)
    _call(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not path.is_dir():
            rights &= OF_FILES
        if rights:
            _call(ADD_RULE, ruleset, PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)


def _filter_system_calls(machine: Machine, sockets: Sequence[int]) -> None:
    """Install a program of the Berkeley packet filter. Each instruction is (code, jump if true, if false, value)."""
    load, equal, at_least, end = 0x20, 0x15, 0x35, 0x06
    number, architecture, argument, protocol = 0, 4, 16, 32
    checks = [(equal, call) for call in machine.refused]
    if machine is MACHINES["x86_64"]:
        checks.append((at_least, X32_CALLS))
    body: list[tuple[int, int | str, int | str, int]] = [
        (load, 0, 0, architecture),
        (equal, 0, "refuse", machine.audit),
        (load, 0, 0, number),
        *((code, "refuse", 0, value) for code, value in checks),
        (equal, 0, 2, machine.prlimit),
        (load, 0, 0, argument),
        (equal, "allow", "refuse", 0),
        (equal, 0, "allow", machine.socket),
        (load, 0, 0, argument),
        *((equal, "allow", 0, family) for family in sockets if family != socket.AF_NETLINK),
    ]
    if socket.AF_NETLINK in sockets:
        body += [(equal, 0, "refuse", socket.AF_NETLINK), (load, 0, 0, protocol), (equal, "allow", 0, 0)]
    targets = {"refuse": len(body), "allow": len(body) + 1}

    def jump(at: int, to: int | str) -> int:
        """Return the number of instructions to skip."""
        return targets[to] - at - 1 if isinstance(to, str) else to

    program = [(code, jump(at, yes), jump(at, no), value) for at, (code, yes, no, value) in enumerate(body)]
    program += [(end, 0, 0, SECCOMP_RET_ERRNO | errno.EPERM), (end, 0, 0, SECCOMP_RET_ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    header = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code))
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header)


def _prctl(option: int, value: int, argument: bytes | int = 0) -> None:
    third = argument if isinstance(argument, bytes) else ctypes.c_ulong(argument)
    if _libc().prctl(option, ctypes.c_ulong(value), third, ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}): {os.strerror(ctypes.get_errno())}")


def _call(number: int, *arguments: object) -> int:
    result: int = _libc().syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}: {os.strerror(ctypes.get_errno())}")
    return result
