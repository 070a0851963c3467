"""Send a large file in parts, several at once, straight to the object storage.

What the storage has is not sent again: after anything that ended it early, the same file goes on where it was.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import cast

from seft.client.downloads import Meter
from seft.client.errors import ApiProblem, ClientError, Flaw
from seft.client.responses import Dataset, Import, ImportPart, Json
from seft.client.retries import tried
from seft.client.steps import QUIET_SECONDS, Pause, Progress, Request, Send, Steps, Together, Work

PARTS_FROM = 100 << 20
"""Files up to this size are sent with one request."""
Call = Callable[[Request], Steps[Json]]


def send(
    path: Path,
    skip: Mapping[str, float],
    *,
    call: Call,
    at_once: int,
    progress: Progress | None,
    pauses: Sequence[float],
) -> Steps[Dataset]:
    """Begin an import of a file or go on with it, send the parts that are not there, and wait for what it becomes.

    `call` asks the service; `skip` says how much of the file may be wrong.
    """
    size = path.stat().st_size
    asked = {"name": path.name, "bytes": size, "resume_key": (yield Work(lambda: _identity(path))), **skip}
    begun = cast("Import", (yield from call(Request("POST", "/imports", json=asked))))
    address = f"/imports/{begun['id']}"
    session = _Session(path, f"{address}/parts", call, pauses, Meter(progress, size))
    yield Together([session.part(number, begun["part_bytes"] or 0) for number in range(begun["parts"] or 0)], at_once)
    yield from call(Request("POST", f"{address}/complete"))
    return (yield from imported(begun["id"], call))


def imported(import_id: str, call: Call) -> Steps[Dataset]:
    """What an import becomes, once it has; ApiProblem with its flaws where it was refused."""
    while True:
        found = cast("Import", (yield from call(Request("GET", f"/imports/{import_id}"))))
        if error := found["error"]:
            flaws = tuple(Flaw(**flaw) for flaw in error["errors"])
            raise ApiProblem(HTTPStatus.UNPROCESSABLE_ENTITY, error["code"], error["message"], flaws, None)
        if found["dataset_id"]:
            return cast("Dataset", (yield from call(Request("GET", f"/datasets/{found['dataset_id']}"))))
        yield Pause(QUIET_SECONDS)


def _identity(path: Path) -> str:
    """What stands for the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Session:
    """What all parts share."""

    def __init__(self, path: Path, address: str, call: Call, pauses: Sequence[float], meter: Meter) -> None:
        self.path, self.address, self.call, self.pauses, self.meter = path, address, call, pauses, meter

    def part(self, number: int, size: int) -> Steps[None]:
        """Send one part, counted from 0; its link is asked for now, as links do not live long."""
        page = yield from self.call(Request("GET", self.address, query={"after": number, "limit": 1}))
        part: ImportPart = page["data"][0]
        if part["url"] is not None:
            content = yield Work(lambda: self._read(number * size, part["bytes"]))
            reply = yield from tried(Send(Request("PUT", part["url"], content=content)), self.pauses)
            if not reply.is_success:
                refusal = ApiProblem.read(reply).message
                raise ClientError(f"Part {part['number']} of {self.path.name} was refused: {refusal} Upload it again.")
        self.meter.add(part["bytes"])

    def _read(self, start: int, length: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(length)
