"""A confined process reaches no network, no file and no process but its own. Real processes and the kernel of here."""

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.infra import sandbox
from tests.waiting import alive, wait_for

ROOT = Path(__file__).parents[3]
CONFINE = """
import os, sys
from pathlib import Path
from core.infra import sandbox
readable, listable, writable, code = sys.argv[1:]
places = [Path(sys.prefix), Path(sys.base_prefix), Path(readable)]
sandbox.confine(places, [Path(listable)], [Path(writable)], getattr(sandbox, os.environ["SOCKETS"]))
os.execve(sys.executable, [sys.executable, "-I", "-c", code, readable, listable, writable], {"OWN": "1"})
"""
NEEDS_ALL = pytest.mark.skipif(bool(sandbox.missing()), reason="This kernel lacks a part of the sandbox.")
NEEDS_LANDLOCK = pytest.mark.skipif(not sandbox.landlock_abi(), reason="This kernel has no Landlock.")


def confined(folder: Path, code: str, sockets: str = "LOCAL_SOCKETS") -> "subprocess.Popen[str]":
    """Start a program in the sandbox. It may read `folder/hub`, list `folder/names` and write `folder/job`."""
    places = [folder / name for name in ("hub", "names", "job")]
    for place in places:
        place.mkdir(exist_ok=True)
    command = [sys.executable, "-c", CONFINE, *map(str, places), code]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "SECRET": "of the parent", "SOCKETS": sockets}
    return subprocess.Popen(
        command, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def outcomes(folder: Path, **actions: str) -> dict[str, str]:
    """Run expressions in the sandbox, and return for each the name of its error, or `done`."""
    code = """
import json, os, socket, subprocess, sys
from pathlib import Path
hub, names, job = map(Path, sys.argv[1:])
found = {}
for name, action in ACTIONS.items():
    try:
        eval(action)
        found[name] = "done"
    except BaseException as error:
        found[name] = type(error).__name__
print(json.dumps(found))
""".replace("ACTIONS", repr(actions), 1)
    output, _ = confined(folder, code).communicate(timeout=30)
    result: dict[str, str] = json.loads(output.splitlines()[-1])  # errors of other processes come first
    return result


def test_a_confined_process_reaches_no_network(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connect = f"socket.create_connection(('127.0.0.1', {listener.getsockname()[1]}))"
        found = outcomes(
            tmp_path,
            connect=connect,
            udp="socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
            six="socket.socket(socket.AF_INET6)",
            netlink="socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
            vsock="socket.socket(socket.AF_VSOCK)",
            of_a_child=f"subprocess.run([sys.executable, '-c', \"import socket; {connect}\"], check=True)",
            uring="os.cpu_count() and __import__('ctypes').CDLL(None).syscall(425, 8, None) >= 0 or 1 / 0",
            pair="socket.socketpair()",
        )
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert found.pop("pair") == "done"
    assert found.pop("of_a_child") == "CalledProcessError"
    assert found.pop("uring") == "ZeroDivisionError"
    assert set(found.values()) == {"PermissionError"}, found


NEIGHBOURS = """
import json, os, socket, sys
sys.path.insert(0, sys.argv[1])
import sandbox
sandbox.leave_network()
found = {}
try:
    socket.create_connection(("127.0.0.1", PORT), timeout=5)
except OSError as error:
    found["network"] = type(error).__name__
with socket.create_server(("127.0.0.1", 0)) as listener:
    if os.fork() == 0:
        with socket.create_connection(listener.getsockname()) as neighbour:
            neighbour.sendall(b"gradient")
        os._exit(0)
    found["neighbour"] = listener.accept()[0].recv(100).decode()
try:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)  # of the firewall
except PermissionError:
    found["firewall"] = "refused"
found["interfaces"] = [name for _, name in socket.if_nameindex()]
with open("/proc/self/status") as status:
    found["rights"] = [line.split()[1].strip("0") for line in status if line.startswith(("CapPrm", "CapEff"))]
print(json.dumps(found))
"""


@pytest.mark.skipif(bool(sandbox.missing(2)), reason="This kernel lacks a part of the sandbox.")
def test_the_processes_of_a_job_on_several_devices_reach_each_other_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    shutil.copy(sandbox.__file__, tmp_path / "hub" / "sandbox.py")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        code = NEIGHBOURS.replace("PORT", str(listener.getsockname()[1]))
        output, _ = confined(tmp_path, code, "CONNECTING_SOCKETS").communicate(timeout=30)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    found = json.loads(output.splitlines()[-1])
    assert found == {
        "network": "ConnectionRefusedError",
        "neighbour": "gradient",
        "firewall": "refused",
        "interfaces": ["lo"],
        "rights": ["", ""],
    }


@NEEDS_LANDLOCK
def test_a_confined_process_reads_what_it_needs_and_writes_only_to_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "names").mkdir()
    for file in (tmp_path / "hub" / "model", tmp_path / "names" / "secret", tmp_path / "secret"):
        file.write_text("content")
    found = outcomes(
        tmp_path,
        read="(hub / 'model').read_text()",
        write="(job / 'file').write_text('content')",
        listing="list(names.iterdir())",
        device="Path('/dev/null').write_text('content')",
        program="subprocess.run(['true'], check=True)",
        read_only="(hub / 'model').write_text('content')",
        deletion="(hub / 'model').unlink()",
        creation="(hub / 'other').write_text('content')",
        listed="(names / 'secret').read_text()",
        secret="(job.parent / 'secret').read_text()",
        link="os.link(job.parent / 'secret', job / 'link')",
        environment=f"Path('/proc/{os.getpid()}/environ').read_bytes()",
        memory=f"open('/proc/{os.getpid()}/mem', 'rb')",
    )
    allowed = {name for name, outcome in found.items() if outcome == "done"}
    assert allowed == {"read", "write", "listing", "device", "program"}, found


def test_no_process_of_a_confined_one_outlives_its_process_group(tmp_path: Path) -> None:
    code = """
import os, subprocess, sys, time
from pathlib import Path
job = Path(sys.argv[3])
def leave(action):
    try:
        action()
    except OSError:
        pass
for action in (os.setsid, lambda: os.setpgid(0, 0), lambda: None):
    if os.fork() == 0:
        leave(action)
        if os.fork() == 0:
            leave(action)
            (job / str(os.getpid())).touch()
            time.sleep(3600)
        os._exit(0)
time.sleep(3600)
"""
    process = confined(tmp_path, code)
    try:
        wait_for(lambda: len(list((tmp_path / "job").iterdir())) == 3)
    finally:
        os.killpg(process.pid, 9)
        process.communicate()
    pids = [int(path.name) for path in (tmp_path / "job").iterdir()]
    wait_for(lambda: not any(alive(pid) for pid in pids))


@NEEDS_ALL
def test_a_confined_process_changes_the_permissions_of_no_file(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    secret, model = tmp_path / "secret", tmp_path / "hub" / "model"
    for file in (secret, model):
        file.write_text("content")
        file.chmod(0o600)
    library = "__import__('ctypes').CDLL(None, use_errno=True)"
    found = outcomes(
        tmp_path,
        mode=f"os.chmod({str(secret)!r}, 0o666)",
        mode_of_a_folder="os.chmod(job.parent, 0)",
        mode_without_links=f"{library}.fchmodat(-100, {os.fsencode(secret)!r}, 0o666, 0x100) == 0 or 1 / 0",
        mode_of_an_open_file="os.fchmod(os.open(hub / 'model', os.O_RDONLY), 0)",
        list_of_users=f"os.setxattr({str(secret)!r}, 'user.list', b'1')",
        list_of_an_open_file="os.setxattr(os.open(hub / 'model', os.O_RDONLY), 'user.list', b'1')",
        removed_list=f"os.removexattr({str(secret)!r}, 'user.list')",
        length=f"os.truncate({str(secret)!r}, 0)",
        own_length="os.truncate(os.open(job / 'file', os.O_CREAT | os.O_WRONLY), 9)",
    )
    assert found.pop("own_length") == "done"
    assert found.pop("mode_without_links") == "ZeroDivisionError"
    assert set(found.values()) == {"PermissionError"}, found
    assert [file.stat().st_mode & 0o777 for file in (secret, model)] == [0o600, 0o600]
    assert os.listxattr(secret) == os.listxattr(model) == []


@NEEDS_ALL
def test_a_confined_process_limits_only_its_own_resources(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        limit = "__import__('resource').prlimit({}, 0, (86400, 86400))"
        found = outcomes(
            tmp_path, other=limit.format(other.pid), parent=limit.format("os.getppid()"), own=limit.format(0)
        )
        limits = resource.prlimit(other.pid, resource.RLIMIT_CPU)
        other.kill()
    assert found == {"other": "PermissionError", "parent": "PermissionError", "own": "done"}
    assert limits == resource.getrlimit(resource.RLIMIT_CPU)


@NEEDS_ALL
def test_a_confined_process_can_send_signals_only_to_its_own_processes(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        found = outcomes(
            tmp_path,
            other=f"os.kill({other.pid}, 9)",
            parent="os.kill(os.getppid(), 0)",
            own="os.kill(os.getpid(), 0)",
            child="subprocess.Popen(['sleep', '60']).kill()",
        )
        time.sleep(0.05)
        assert other.poll() is None
        other.kill()
    assert found == {"other": "PermissionError", "parent": "PermissionError", "own": "done", "child": "done"}


def test_root_has_no_capabilities_in_the_sandbox(tmp_path: Path) -> None:
    output, _ = confined(tmp_path, "print(open('/proc/self/status').read())").communicate(timeout=30)
    fields = dict(line.split(":\t", 1) for line in output.splitlines() if ":\t" in line)
    assert {int(fields[name], 16) for name in ("CapPrm", "CapEff", "CapAmb")} == {0}
    assert fields["NoNewPrivs"] == "1"
