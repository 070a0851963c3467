"""The embedded servers: they keep their data, require a password, and end with their owner."""

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import psycopg
import pytest
import redis
from botocore.exceptions import ClientError

from local import folder
from local import servers as module
from local.folder import LOOPBACK, FolderLock, port_of, reserve, reserve_ports
from local.processes import LocalError, children_of
from local.servers import Servers, remove_if_zombie
from tests.waiting import alive, wait_for

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

OWNER = """
import sys, time
from pathlib import Path
from local.servers import Servers
with Servers(Path(sys.argv[1])):
    print("ready", flush=True)
    while True:  # `signal.pause` waits for ever if the signal arrives just before it
        time.sleep(0.1)
"""


def start_owner(folder: Path) -> subprocess.Popen[bytes]:
    """Return a process that has started servers in `folder` and waits for a signal."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert owner.stdout is not None
    with owner.stdout:
        assert owner.stdout.readline() == b"ready\n"
    return owner


def s3(servers: Servers, secret: str | None = None) -> "S3Client":
    return boto3.client(
        "s3",
        endpoint_url=servers.storage.endpoint,
        region_name="us-east-1",
        aws_access_key_id=servers.storage.access_key,
        aws_secret_access_key=secret or servers.storage.secret,
    )


def write(servers: Servers) -> None:
    with psycopg.connect(servers.postgres.url()) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept AS SELECT 42 AS value")
    s3(servers).create_bucket(Bucket="kept")
    s3(servers).put_object(Bucket="kept", Key="a/b", Body=b"bytes")


def assert_kept(servers: Servers) -> None:
    with psycopg.connect(servers.postgres.url()) as connection:
        assert connection.execute("SELECT value FROM kept").fetchone() == (42,)
    assert s3(servers).get_object(Bucket="kept", Key="a/b")["Body"].read() == b"bytes"


def test_data_and_addresses_survive_a_restart_and_a_kill(tmp_path: Path) -> None:
    folder = tmp_path / 'my "projects" \\ö'  # the programs can read any path
    with Servers(folder) as first:
        write(first)
        before = first.environment()
        for server in first.all:
            server.kill()
        for server in first.all:
            server.start()
        assert_kept(first)
        assert first.environment() == before
    with Servers(folder) as second:
        assert_kept(second)
        assert second.environment() == before


def test_data_survive_if_other_processes_have_taken_the_ports(tmp_path: Path) -> None:
    with Servers(tmp_path) as first:
        write(first)
        ports = [server.port for server in first.all]
    takers = [socket.create_server((LOOPBACK, port)) for port in ports]
    try:
        with Servers(tmp_path) as second:
            assert not {server.port for server in second.all} & set(ports)
            assert_kept(second)
    finally:
        for taker in takers:
            taker.close()


@pytest.mark.parametrize("last", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_server_outlives_its_owner(tmp_path: Path, last: signal.Signals) -> None:
    owner = start_owner(tmp_path)
    owner.send_signal(last)
    owner.wait()
    wait_for(lambda: FolderLock(tmp_path).free())  # no process has the lock open: all servers have ended
    with Servers(tmp_path) as again:
        assert again.postgres.running


def test_a_server_that_does_not_end_after_its_owner_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "SHUTDOWN_SECONDS", 0.5)
    lock = FolderLock(tmp_path)
    lock.acquire()
    stubborn = subprocess.Popen(["sleep", "600"], pass_fds=[lock.descriptor])
    lock.path.write_text("0")  # the owner has ended
    lock.release()
    lock.acquire()
    assert stubborn.wait() == -signal.SIGKILL
    lock.release()


def test_a_killed_postgres_that_nobody_waited_for_does_not_prevent_a_start(tmp_path: Path) -> None:
    zombie = subprocess.Popen(["true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    (pid_file := tmp_path / "postmaster.pid").write_text(f"{zombie.pid}\n/data\n")
    remove_if_zombie(pid_file)
    assert not pid_file.exists()
    zombie.wait()
    pid_file.write_text(f"{os.getpid()}\n/data\n")
    remove_if_zombie(pid_file)
    assert pid_file.exists()


def test_a_folder_has_one_owner_and_two_folders_run_in_parallel(tmp_path: Path, servers: Servers) -> None:
    with pytest.raises(LocalError, match=rf"in use by process {os.getpid()}.*make down"):
        Servers(servers.lock.folder).start()
    with Servers(tmp_path) as other:
        assert not set(other.environment().values()) & set(servers.environment().values()) - {"seft"}


def test_wrong_passwords_are_rejected(servers: Servers) -> None:
    wrong = "0" * 64
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(servers.postgres.url().replace(servers.postgres.secret, wrong))
    with (
        redis.Redis.from_url(servers.valkey.url().replace(servers.valkey.secret, wrong)) as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.ping()
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        s3(servers, wrong).list_buckets()


def test_servers_listen_on_loopback_only(servers: Servers) -> None:
    sockets = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":  # listening
                sockets[f"socket:[{fields[9]}]"] = fields[1].split(":")[0]
    for server in servers.all:
        assert server.process is not None
        addresses = set()
        for link in Path(f"/proc/{server.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed since it was listed
                addresses.add(sockets.get(str(link.readlink())))
        addresses.discard(None)
        assert addresses == {"0100007F"}, server.name


def test_secrets_are_readable_by_their_owner_only(servers: Servers) -> None:
    modes = {path.name: path.stat().st_mode & 0o077 for path in servers.lock.folder.glob("*/*") if path.is_file()}
    assert {modes[name] for name in ("secret", "conf", "keys.json", "options")} == {0}
    assert servers.lock.folder.stat().st_mode & 0o077 == 0


def test_no_command_line_contains_a_password(servers: Servers) -> None:
    secrets = re.compile("|".join([servers.postgres.secret, servers.valkey.secret, servers.storage.secret]))
    for server in servers.all:
        assert server.process is not None
        assert not secrets.search(Path(f"/proc/{server.process.pid}/cmdline").read_text())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to change the user")
def test_postgres_runs_where_user_namespaces_are_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "without_root", module.as_nobody)
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    with Servers(hidden / "stack") as running:
        write(running)
        assert running.postgres.process is not None
        assert Path(f"/proc/{running.postgres.process.pid}").stat().st_uid == int(module.NOBODY)
        running.postgres.kill()
        running.postgres.start()
        assert_kept(running)


def test_the_children_of_a_killed_postgres_end(servers: Servers) -> None:
    assert servers.postgres.process is not None
    children = children_of(servers.postgres.process.pid)
    assert children
    servers.postgres.kill()
    try:
        wait_for(lambda: not any(map(alive, children)))
    finally:
        servers.postgres.start()


def test_a_taken_port_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    before = release(reserve_ports(tmp_path, ("a", "b")))
    with socket.create_server((LOOPBACK, before["a"])):
        after = release(reserve_ports(tmp_path, ("a", "b")))
    assert after["a"] != before["a"]
    assert after["b"] == before["b"]


def test_only_a_server_can_use_a_reserved_port(tmp_path: Path) -> None:
    ports = reserve_ports(tmp_path, ("a", "b"))
    numbers = {name: port_of(reservation) for name, reservation in ports.items()}
    assert not any(map(reserve, numbers.values()))
    with socket.create_server((LOOPBACK, numbers["a"])) as server:
        assert not reserve(numbers["a"], returning=True)
        with socket.create_connection((LOOPBACK, numbers["a"])):
            server.accept()[0].close()
    assert release(ports) == numbers
    assert not reserve(numbers["a"]), "the connection is still in TIME_WAIT"
    assert release(reserve_ports(tmp_path, ("a", "b"))) == numbers


def release(ports: dict[str, socket.socket]) -> dict[str, int]:
    """Release reserved ports and return their numbers."""
    numbers = {name: port_of(reservation) for name, reservation in ports.items()}
    for reservation in ports.values():
        reservation.close()
    return numbers
