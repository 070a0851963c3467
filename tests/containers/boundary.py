"""What the worker, the host and a training process can reach in a running stack."""

import json
import shutil
import socket

import boto3
import pytest
import typer
from botocore.exceptions import ClientError

from seft.client import Client
from tests.containers import inside
from tests.containers.drill import WORKER, Drill, post
from tests.seaweed import put_identity

S3, S3_GRPC = 8333, 18333
UNPROTECTED = (8888, 9333, 8080)
"""Ports of filer, master and volume server, which require no keys."""
REFUSED = """
import socket, sys
socket.create_connection(("storage", 8333), timeout=5).close()
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)
except OSError:
    sys.exit()
sys.exit(f"{sys.argv[1:]} accepted a connection")
"""
"""A program that fails if it can connect to the host and port in its arguments."""
COMPILED = """
from seft.native import kernels
assert kernels.library(), "the image lacks the compiled kernels"
assert kernels.has_compiler(), "the image lacks the compiler that Triton needs"
"""


def check_worker(drill: Drill) -> None:
    """Check that the worker reaches S3, but none of the unprotected ports of the storage, and not Prometheus."""
    for host, port in (*(("storage", port) for port in UNPROTECTED), ("prometheus", 9090)):
        drill.compose("exec", "--no-TTY", WORKER, "python", "-c", REFUSED, host, str(port))
    typer.echo("the worker reaches S3, and neither filer, master nor volume server")


def check_kernels(drill: Drill) -> None:
    """Check that the worker has the kernels of the CPU, and a compiler for those of CUDA."""
    drill.compose("exec", "--no-TTY", WORKER, "python", "-c", COMPILED)
    typer.echo("the worker has compiled kernels")


def check_host(drill: Drill) -> None:
    """Check that only S3 is published, and that the host reaches none of the unprotected ports of the container."""
    container = drill.compose("ps", "--quiet", "storage").strip()
    settings = json.loads(drill.run(["docker", "inspect", container]))[0]["NetworkSettings"]
    assert [port for port, addresses in settings["Ports"].items() if addresses] == [f"{S3}/tcp"]
    for network in settings["Networks"].values():
        assert accepts(network["IPAddress"], S3)
        assert not any(accepts(network["IPAddress"], port) for port in UNPROTECTED)
        check_keys(network["IPAddress"])
    typer.echo("the host reaches S3, and neither filer, master nor volume server")


def accepts(host: str, port: int) -> bool:
    """Return whether a server accepts a connection."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def check_keys(host: str) -> None:
    """Check that strangers cannot add an access key to S3."""
    key = "stranger"
    put_identity(host, S3_GRPC, key, key)
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{S3}",
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=key,
    )
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        client.list_buckets()


def check_training(drill: Drill, client: Client, dataset: str) -> None:
    """Check that a training process has no network, and cannot read secrets. See `tests.containers.inside`.

    For this job, another worker with the same settings takes the place of the stack's worker.
    """
    # Training processes can read the folder of the models.
    copy = shutil.copyfile(inside.__file__, drill.folder / "models" / "inside.py")
    drill.compose("stop", WORKER)
    program = "/var/lib/seft/models/inside.py"
    container = drill.compose("run", "--detach", "--rm", "--no-deps", WORKER, "python", program, "worker").strip()
    try:
        *_, job = client.watch(post(client, dataset))
    finally:
        drill.run(["docker", "logs", container], quiet=False)
        drill.run(["docker", "stop", container])
        copy.unlink()
    error = job["error"]
    assert error, job
    assert error["code"] == inside.CODE, error
    found = json.loads(error["message"])
    typer.echo(json.dumps(found, indent=2))
    allowed = {"PermissionError", "gaierror"}
    assert not {name for name, outcome in found["outcomes"].items() if outcome not in allowed}
    assert not {name for name in found["variables"] if name.startswith("SEFT_") or "TOKEN" in name}
    drill.compose("up", "--detach", "--wait", WORKER)
