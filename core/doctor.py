"""The checks of `seft doctor`. They test everything that the service needs on this machine.

Each check does the same as the service does. Its result says what is wrong and how to fix it, and contains no secret.
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from enum import StrEnum
from io import BytesIO
from shutil import disk_usage
from urllib.parse import urlsplit, urlunsplit

import httpx2
import redis
from pydantic import ValidationError
from sqlalchemy import Connection, func, inspect, select

from core import bucket_owner, ids
from core.infra import devices, sandbox
from core.infra.database import make_engine, one_session
from core.infra.storage import Storage
from core.settings import Settings, flaws
from core.tables import Base
from seft.errors import SourceError
from seft.models.source import find, names_under

GIB = 1 << 30
MIN_FREE_DISK = 10 * GIB
"""Minimum free bytes. The state and the checkpoint of a model with a few billion weights need more."""
MAX_CLOCK_DIFFERENCE = 30
"""Maximum difference of two clocks, in seconds."""
ALIKE = 0.9
"""Minimum similarity (0 to 1) to the name of a setting for which an unknown name counts as misspelt."""
OBJECTS = "doctor"
"""Folder of the bucket for the objects of the checks. They are deleted after each check."""
LARGE_OBJECT = bytes(9 << 20)
"""Content of a test object that is large enough to be uploaded in several parts."""


class State(StrEnum):
    """Result of a check."""

    OK = "ok"
    NOTE = "note"  # the finding may be intended
    WRONG = "WRONG"


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check: its name, its state, what the check observed, and how to fix a problem."""

    name: str
    state: State
    found: str
    fix: str = ""


class CheckFailed(Exception):  # noqa: N818 (not an error of the program)
    """A check failed, and its advice is more specific than the default advice in `CHECKS`."""

    def __init__(self, found: str, fix: str, state: State = State.WRONG) -> None:
        super().__init__(found)
        self.found, self.fix, self.state = found, fix, state


def run_checks() -> Iterator[Finding]:
    """Run all checks, in the order in which problems should be fixed.

    If the settings are invalid, no other check runs.
    """
    try:
        settings = Settings()
    except ValidationError as error:
        for flaw in flaws(Settings, error):
            yield Finding("settings", State.WRONG, flaw, "docs/configuration.md lists all settings.")
        return
    yield Finding("settings", State.OK, "all settings are valid")
    yield from _misspelt(os.environ)
    for name in CHECKS:
        yield run_check(name, settings)


def run_check(name: str, settings: Settings) -> Finding:
    """Run the check with this name."""
    check, fix = CHECKS[name]
    try:
        return Finding(name, State.OK, check(settings))
    except CheckFailed as failure:
        return Finding(name, failure.state, failure.found, failure.fix)
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        return Finding(name, State.WRONG, message, fix)


def _misspelt(variables: Iterable[str]) -> Iterator[Finding]:
    """Yield a note on every variable whose name is almost the name of a setting. The service ignores it."""
    prefix = str(Settings.model_config["env_prefix"])
    known = [prefix + field.upper() for field in Settings.model_fields]
    for name in sorted(variables):
        if name.startswith(prefix) and name not in known and (near := get_close_matches(name, known, 1, ALIKE)):
            yield Finding("settings", State.NOTE, f"{name} is no setting and is ignored", f"Did you mean {near[0]}?")


@contextmanager
def _connected(settings: Settings) -> Iterator[Connection]:
    engine = make_engine(settings)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def database(settings: Settings) -> str:
    """Check that the database answers and has every table and column that this version of the software needs."""
    with _connected(settings) as connection:
        server = connection.exec_driver_sql("SHOW server_version").scalar_one()
        inspector = inspect(connection)
        existing = {
            (name, column["name"]) for name in inspector.get_table_names() for column in inspector.get_columns(name)
        }
    required = {(table.name, column.name) for table in Base.metadata.tables.values() for column in table.columns}
    if missing := sorted(required - existing):
        found = f"Postgres {server} lacks {len(missing)} columns of this version, such as {'.'.join(missing[0])}"
        raise CheckFailed(found, "Upgrade the schema: python -m migrations")
    return f"Postgres {server}, with all tables and columns of this version"


def clock(settings: Settings) -> str:
    """Check that the clocks of this machine and of the database agree. S3 rejects requests with a wrong time."""
    before = datetime.now(UTC)
    with _connected(settings) as connection:
        database_time = connection.scalars(select(func.clock_timestamp())).one()
    after = datetime.now(UTC)
    difference = max((before - database_time).total_seconds(), (database_time - after).total_seconds(), 0)
    if difference > MAX_CLOCK_DIFFERENCE:
        found = f"the clocks of this machine and the database differ by {difference:.0f} s"
        raise CheckFailed(found, "Synchronize both with a time server (chrony, systemd-timesyncd).")
    return "agrees with the clock of the database"


def queue(settings: Settings) -> str:
    """Check that the broker stores and returns a value."""
    key = f"doctor:{os.getpid()}"
    with redis.Redis.from_url(str(settings.broker_url), socket_connect_timeout=5, socket_timeout=5) as client:
        client.set(key, "kept", ex=60)
        if client.getdel(key) != b"kept":
            raise OSError("a value that was written cannot be read")
        return f"{client.info('server')['redis_version']} stores and returns values"


def bucket(settings: Settings) -> str:
    """Check that the object storage stores small and large objects, and that download links work."""
    storage, prefix = Storage(settings), f"{OBJECTS}/{ids.new('req')}"
    small, large = f"{prefix}/small", f"{prefix}/large"
    storage.ensure_bucket()
    try:
        storage.put(small, b"kept")
        storage.upload(BytesIO(LARGE_OBJECT), large)
        if storage.read(large) != LARGE_OBJECT:
            raise OSError("an object of several parts was read back changed")
        links = _check_link(settings, storage.link(small))
        return f"{settings.s3_bucket} stores objects and multipart uploads, and {links}"
    finally:
        storage.delete([small, large])


def _check_link(settings: Settings, link: str) -> str:
    """Check that the storage accepts the signature of a download link.

    The request goes to the endpoint of the service. Only a user's machine can test whether users can reach the public
    host.
    """
    public, inner = urlsplit(link), urlsplit(settings.s3_endpoint)
    internal = urlunsplit((inner.scheme, inner.netloc, public.path, public.query, ""))
    response = httpx2.get(internal, headers={"Host": public.netloc}, timeout=10)
    if response.content != b"kept":
        raise CheckFailed(
            f"a download link is rejected with {response.status_code}: {response.text[:200]}",
            "A proxy in front of the storage must not change host or path. Check SEFT_S3_PUBLIC_ENDPOINT.",
        )
    try:
        if httpx2.get(link, timeout=10).content == b"kept":
            return "download links work"
        found = f"{public.netloc} responds, but not with the object"
    except httpx2.HTTPError as error:
        found = f"{public.netloc} cannot be reached from here ({error})"
    fix = f"Try {public.netloc} on a user's machine. If it fails there too, correct SEFT_S3_PUBLIC_ENDPOINT."
    raise CheckFailed(f"stores objects and signs download links correctly; {found}", fix, State.NOTE)


def owner(settings: Settings) -> str:
    """Check that the bucket does not belong to another service."""
    with one_session(settings) as session:
        service = bucket_owner.service_id(session)
    if foreign := bucket_owner.foreign_owner(Storage(settings), service):
        raise CheckFailed(foreign, bucket_owner.FIX)
    return f"{settings.s3_bucket} belongs to no other service"


def disk(settings: Settings) -> str:
    """Check that the scratch folder is writable and has enough disk space."""
    settings.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=settings.scratch) as file:
        file.write(b"kept")
    free = disk_usage(settings.scratch).free
    if free < MIN_FREE_DISK:
        found = f"{settings.scratch} has {free / GIB:.1f} GiB free"
        raise CheckFailed(found, f"Set SEFT_SCRATCH to a folder with at least {MIN_FREE_DISK // GIB} GiB free.")
    return f"{settings.scratch} is writable and has {free / GIB:.0f} GiB free"


def models(settings: Settings) -> str:
    """Check that every folder in SEFT_MODEL_ROOTS can be read and that every model in it can be used."""
    accepted, rejected = 0, []
    for root in settings.model_roots:
        next(root.iterdir(), None)  # raises an error if the folder cannot be read
        for name in sorted(names_under(root)):
            try:
                find(name, roots=settings.model_roots)
                accepted += 1
            except SourceError as error:
                rejected.append(str(error))
    if rejected:
        found = f"{accepted} models are accepted and {len(rejected)} are rejected: {rejected[0]}"
        raise CheckFailed(
            found, "Repair or remove each rejected model. The user that runs the worker must be able to read it."
        )
    if not accepted:
        offline = os.environ.get("HF_HUB_OFFLINE", "0") not in {"", "0"}
        found = "no local models" + (
            ", and HF_HUB_OFFLINE disables the hub" if offline else "; jobs can use hub models only"
        )
        fix = "Put model folders into a folder of SEFT_MODEL_ROOTS."
        raise CheckFailed(found, fix, State.WRONG if offline else State.NOTE)
    return f"{accepted} accepted"


def device(settings: Settings) -> str:
    """Check that the driver, torch and SEFT_DEVICE fit together, and that the memory of the device is free."""
    driver, torch = devices.driver(), devices.torch()
    if torch is None:
        found = "torch is not installed, so this machine cannot run a worker"
        raise CheckFailed(found, "Run `seft doctor` on the worker's machine too.", State.NOTE)
    build = f"torch {torch['version']}"
    if not torch["there"] and (driver or settings.device.startswith("cuda")):
        if driver is None:
            found, fix = "no NVIDIA driver", "Install the driver and the container toolkit, or set SEFT_DEVICE=cpu."
        elif torch["cuda"] is None:
            found, fix = f"{driver}; {build} is built without CUDA", "Install torch with CUDA."
        else:
            found = f"{driver}; {build} for CUDA {torch['cuda']} finds no device"
            fix = (
                "Install a newer driver or torch for an older CUDA. In a container, check that the device is passed in."
            )
        raise CheckFailed(found, fix)
    if not torch["there"] or settings.device == "cpu":
        return f"{build}, on the CPU"
    for index in _own_devices(settings, len(torch["memory"])):
        free, total = torch["memory"][index]
        if free < total / 2:
            found = f"cuda:{index} has {free / GIB:.1f} of {total / GIB:.1f} GiB free"
            fix = "Run nvidia-smi to see which processes use the other memory. One of them may be a running job."
            raise CheckFailed(found, fix, State.NOTE)
    return f"{driver or 'a device'}; {build} for CUDA {torch['cuda']}"


def _own_devices(settings: Settings, found: int) -> range:
    """Return the numbers of the devices of the worker. `found` is the number of devices that torch finds."""
    first = int(settings.device.partition(":")[2] or 0)
    own = range(first, first + settings.devices)
    if own.stop > found:
        raise CheckFailed(
            f"SEFT_DEVICE={settings.device} with SEFT_DEVICES={settings.devices} needs cuda:{own[-1]}; torch finds"
            f" {found} devices, and the first is cuda:0",
            "Correct the two variables. In a container, check that all devices are passed in.",
        )
    return own


def training_sandbox(settings: Settings) -> str:
    """Check that the kernel and the container engine offer everything that confines a training process."""
    if flaws := sandbox.missing(settings.devices):
        fix = (
            "Use a newer kernel, or a container engine whose seccomp profile allows Landlock (Docker 23 or newer), and"
            " `unshare` for jobs on several devices."
        )
        raise CheckFailed("this machine lacks " + "; ".join(flaws), fix, State.NOTE)
    return f"Landlock version {sandbox.landlock_abi()} and seccomp confine training processes"


CHECKS: dict[str, tuple[Callable[[Settings], str], str]] = {
    "database": (database, "Check that Postgres runs and that SEFT_DATABASE_URL has its host, user and password."),
    "clock": (clock, "Fix the database first."),
    "queue": (queue, "Check that Valkey runs and that SEFT_BROKER_URL has its host and password."),
    "bucket": (
        bucket,
        "Check that the storage runs and that SEFT_S3_ENDPOINT, _ACCESS_KEY, _SECRET_KEY and _BUCKET are correct.",
    ),
    "owner": (owner, "Fix the database and the bucket first."),
    "disk": (disk, "Set SEFT_SCRATCH to a folder that the worker's user can write."),
    "models": (models, "Set SEFT_MODEL_ROOTS to existing folders that the service's user can read."),
    "sandbox": (training_sandbox, "Run the worker on Linux on x86-64 or aarch64."),
    "device": (device, "Repair the NVIDIA driver, or reinstall torch."),
}
"""All checks: name -> the check and its default advice, which is shown if the check itself gives none."""
