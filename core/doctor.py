"""`seft doctor`: tries everything that the service needs from where it is called, and says what to mend.

Each check does what the service does there. What is wrong is told in a sentence with a way out, and no secret in it.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from io import BytesIO
from shutil import disk_usage
from urllib.parse import urlsplit, urlunsplit

import httpx2
import redis
from pydantic import ValidationError
from sqlalchemy import Connection, func, inspect, select

from core import ids
from core.infra import devices
from core.infra.database import make_engine
from core.infra.storage import Storage
from core.settings import Settings
from core.tables import Base
from seft.errors import SourceError
from seft.models.source import find

GIB = 1 << 30
LEAST_DISK = 10 * GIB
"""A state and a checkpoint of a model of a few billion weights take more."""
CLOCK_SECONDS = 30
LARGE = bytes(9 << 20)
"""More than one part of an upload."""


class State(StrEnum):
    """How a thing stands."""

    OK = "ok"
    NOTE = "note"  # it may be meant so
    WRONG = "WRONG"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing, how it stands, what was seen, and what to do about it."""

    name: str
    state: State
    seen: str
    mend: str = ""


class CheckFailed(Exception):  # noqa: N818 (it is no error of ours)
    """What a check found, where its usual way out would not do."""

    def __init__(self, seen: str, mend: str, state: State = State.WRONG) -> None:
        super().__init__(seen)
        self.seen, self.mend, self.state = seen, mend, state


def examine() -> Iterator[Finding]:
    """Everything, in the order in which it is mended: the settings first, without which nothing else can be tried."""
    try:
        settings = Settings()
    except ValidationError as error:
        for flaw in error.errors():
            name = "SEFT_" + "_".join(map(str, flaw["loc"])).upper() if flaw["loc"] else "the settings"
            yield Finding("settings", State.WRONG, f"{name}: {flaw['msg']}", "docs/configuration.md lists all of them.")
        return
    yield Finding("settings", State.OK, "all are there and fit each other")
    for name in CHECKS:
        yield run_check(name, settings)


def run_check(name: str, settings: Settings) -> Finding:
    """One of the `CHECKS`."""
    check, mend = CHECKS[name]
    try:
        return Finding(name, State.OK, check(settings))
    except CheckFailed as complaint:
        return Finding(name, complaint.state, complaint.seen, complaint.mend)
    except Exception as error:
        words = " ".join(str(error).split()) or type(error).__name__
        return Finding(name, State.WRONG, words, mend)


@contextmanager
def _connected(settings: Settings) -> Iterator[Connection]:
    engine = make_engine(settings)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def database(settings: Settings) -> str:
    """It answers, and has every table and column that this software knows."""
    with _connected(settings) as connection:
        server = connection.exec_driver_sql("SHOW server_version").scalar_one()
        inspector = inspect(connection)
        there = {
            (name, column["name"]) for name in inspector.get_table_names() for column in inspector.get_columns(name)
        }
    wanted = {(table.name, column.name) for table in Base.metadata.tables.values() for column in table.columns}
    if missing := sorted(wanted - there):
        seen = f"Postgres {server} lacks {len(missing)} columns of this software, such as {'.'.join(missing[0])}"
        raise CheckFailed(seen, "Bring it to the newest schema: python -m migrations")
    return f"Postgres {server}, with all that this software knows"


def clock(settings: Settings) -> str:
    """This machine and the database agree; S3 refuses requests that are dated wrongly."""
    before = datetime.now(UTC)
    with _connected(settings) as connection:
        theirs = connection.scalars(select(func.clock_timestamp())).one()
    after = datetime.now(UTC)
    off = max((before - theirs).total_seconds(), (theirs - after).total_seconds(), 0)
    if off > CLOCK_SECONDS:
        seen = f"this machine and the database disagree by {off:.0f} s"
        raise CheckFailed(seen, "Let both follow a time server (chrony, systemd-timesyncd).")
    return "agrees with the database's"


def queue(settings: Settings) -> str:
    """It takes and gives."""
    key = f"doctor:{os.getpid()}"
    with redis.Redis.from_url(str(settings.broker_url), socket_connect_timeout=5, socket_timeout=5) as client:
        client.set(key, "kept", ex=60)
        if client.getdel(key) != b"kept":
            raise OSError("what was written is not there")
        return f"{client.info('server')['redis_version']} keeps what it is given"


def bucket(settings: Settings) -> str:
    """It keeps small objects and large ones, and gives them back to whoever has a link."""
    storage, prefix = Storage(settings), f"doctor/{ids.new('req')}"
    small, large = f"{prefix}/small", f"{prefix}/large"
    storage.ensure_bucket()
    try:
        storage.put(small, b"kept")
        storage.upload(BytesIO(LARGE), large)
        if storage.read(large) != LARGE:
            raise OSError("an object in parts came back changed")
        return f"{settings.s3_bucket} takes objects, in parts too, and {_linked(settings, storage.link(small))}"
    finally:
        storage.delete([small, large])


def _linked(settings: Settings, link: str) -> str:
    """A link's signature is good at the storage; whether users reach the address in it, only their machines know."""
    public, inner = urlsplit(link), urlsplit(settings.s3_endpoint)
    inside = urlunsplit((inner.scheme, inner.netloc, public.path, public.query, ""))
    reply = httpx2.get(inside, headers={"Host": public.netloc}, timeout=10)
    if reply.content != b"kept":
        raise CheckFailed(
            f"a download link is refused with {reply.status_code}: {reply.text[:200]}",
            "A proxy between here and the storage must not change host or path; look at SEFT_S3_PUBLIC_ENDPOINT.",
        )
    try:
        if httpx2.get(link, timeout=10).content == b"kept":
            return "its links work"
        seen = f"{public.netloc} answers, and not with the object"
    except httpx2.HTTPError as error:
        seen = f"not from here ({error})"
    mend = "Open it on a user's machine; where it does not answer there, mend SEFT_S3_PUBLIC_ENDPOINT."
    raise CheckFailed(f"takes objects; links are signed well and lead to {public.netloc}: {seen}", mend, State.NOTE)


def disk(settings: Settings) -> str:
    """The scratch folder can be written, and has room."""
    settings.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=settings.scratch) as file:
        file.write(b"kept")
    free = disk_usage(settings.scratch).free
    if free < LEAST_DISK:
        seen = f"{settings.scratch} has {free / GIB:.1f} GiB free"
        raise CheckFailed(seen, f"Give SEFT_SCRATCH a disk with {LEAST_DISK // GIB} GiB at least.")
    return f"{settings.scratch} can be written and has {free / GIB:.0f} GiB free"


def models(settings: Settings) -> str:
    """Every root can be read, and every model in it would be taken."""
    found, refused = 0, []
    for root in settings.model_roots:
        for path in sorted(root.iterdir()):
            try:
                find(path.name, roots=settings.model_roots)
                found += 1
            except SourceError as error:
                refused.append(str(error))
    if refused:
        seen = f"{found} models, and {len(refused)} that would be refused: {refused[0]}"
        raise CheckFailed(seen, "Mend or remove it; whoever runs the worker must be able to read it.")
    if not found:
        offline = os.environ.get("HF_HUB_OFFLINE", "0") not in {"", "0"}
        seen = "no local models" + (", and HF_HUB_OFFLINE keeps the hub away" if offline else "; jobs name hub models")
        mend = "Put folders into a folder that SEFT_MODEL_ROOTS names."
        raise CheckFailed(seen, mend, State.WRONG if offline else State.NOTE)
    return f"{found} that would be taken"


def device(settings: Settings) -> str:
    """Driver, torch and setting fit each other, and the device's memory is free."""
    driver, torch = devices.driver(), devices.torch()
    if torch is None:
        seen = "torch is not installed here: this is no worker"
        raise CheckFailed(seen, "Call it where a worker runs, too.", State.NOTE)
    build = f"torch {torch['version']}"
    if not torch["there"] and (driver or settings.device.startswith("cuda")):
        if driver is None:
            seen, mend = "no NVIDIA driver", "Install driver and container toolkit, or set SEFT_DEVICE=cpu."
        elif torch["cuda"] is None:
            seen, mend = f"{driver}; {build} is built without CUDA", "Install the build for CUDA."
        else:
            seen = f"{driver}; {build} for CUDA {torch['cuda']} finds no device"
            mend = "Install a driver that knows this CUDA, or torch for an older one; see that the device is passed on."
        raise CheckFailed(seen, mend)
    if not torch["there"] or settings.device == "cpu":
        return f"{build}, on the CPU"
    for index, (free, total) in enumerate(torch["memory"]):
        if free < total / 2:
            seen = f"cuda:{index} has {free / GIB:.1f} of {total / GIB:.1f} GiB free"
            raise CheckFailed(seen, "nvidia-smi tells who has the rest; a job of ours may be running.", State.NOTE)
    return f"{driver or 'a device'}; {build} for CUDA {torch['cuda']}"


CHECKS: dict[str, tuple[Callable[[Settings], str], str]] = {
    "database": (database, "See that Postgres runs and that SEFT_DATABASE_URL names its host, user and password."),
    "clock": (clock, "Mend the database first."),
    "queue": (queue, "See that Valkey runs and that SEFT_BROKER_URL names its host and password."),
    "bucket": (
        bucket,
        "See that the storage runs and that SEFT_S3_ENDPOINT, _ACCESS_KEY, _SECRET_KEY and _BUCKET are its own.",
    ),
    "disk": (disk, "Let SEFT_SCRATCH name a folder that the worker's user may write."),
    "models": (models, "Let SEFT_MODEL_ROOTS name folders that are there and that the service's user may read."),
    "device": (device, "Mend NVIDIA's driver, or install torch anew."),
}
"""What is looked at, and the way out where a check has no other words."""
