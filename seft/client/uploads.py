"""Uploads large files in parallel parts, directly to the object storage.

An interrupted upload is resumed: parts that the storage already has are not sent again.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from stat import S_ISREG
from typing import cast

from seft.client.calls import path_of
from seft.client.downloads import Meter, require_parallel, sha256_of
from seft.client.errors import ApiProblem, ClientError, Flaw, storage_rejection
from seft.client.responses import Dataset, Import, ImportPart, Json
from seft.client.retries import tried
from seft.client.steps import QUIET_SECONDS, Pause, Progress, Request, Send, Steps, Together, Work

PARTS_FROM = 100 << 20
"""Largest file, in bytes, that is sent in one request. Larger files are sent in parts."""
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
    """Upload a file in parts, or continue an interrupted upload. Returns the dataset when the service has checked it.

    `call` sends a request to the service. `skip` contains the percentage of invalid records that may be left out.
    """
    require_parallel(at_once)
    size = path.stat().st_size
    body = {"name": path.name, "bytes": size, "resume_key": (yield Work(lambda: sha256_of(path))), **skip}
    started = cast("Import", (yield from call(Request("POST", "/imports", json=body))))
    address, parts, part_bytes = path_of("imports", started["id"]), started["parts"] or 0, started["part_bytes"] or 0
    session = _Session(path, f"{address}/parts", call, pauses, Meter(progress, size))
    yield Together([session.part(number, part_bytes) for number in range(parts)], at_once)
    yield from call(Request("POST", f"{address}/complete"))
    return (yield from imported(started["id"], call))


def imported(import_id: str, call: Call) -> Steps[Dataset]:
    """Wait until an import has ended. Returns its dataset. Raises ApiProblem if the file was rejected."""
    while True:
        current = cast("Import", (yield from call(Request("GET", path_of("imports", import_id)))))
        if error := current["error"]:
            flaws = Flaw.read(error["errors"])
            raise ApiProblem(HTTPStatus.UNPROCESSABLE_ENTITY, error["code"], error["message"], flaws, None)
        if dataset_id := current["dataset_id"]:
            return cast("Dataset", (yield from call(Request("GET", path_of("datasets", dataset_id)))))
        yield Pause(QUIET_SECONDS)


def require_file(path: Path) -> None:
    """Raise ClientError if the file cannot be sent: it is read several times, and a form needs its name as UTF-8."""
    if not S_ISREG(path.stat().st_mode):
        raise ClientError(
            f"An upload must be a regular file, not a pipe or a folder; it is {path!s}. Write it to a file."
        )
    if re.search(r"[\ud800-\udfff]", path.name):
        raise ClientError(f"The name of an upload must be valid UTF-8; it is {path.name!r}. Rename the file.")


class _Session:
    """State that all parts of one upload share."""

    def __init__(self, path: Path, address: str, call: Call, pauses: Sequence[float], meter: Meter) -> None:
        self.path, self.address, self.call, self.pauses, self.meter = path, address, call, pauses, meter

    def part(self, number: int, size: int) -> Steps[None]:
        """Send part `number`, counted from 0.

        The link for the part is requested just before, because links expire soon.
        """
        page = yield from self.call(Request("GET", self.address, query={"after": number, "limit": 1}))
        part: ImportPart = page["data"][0]
        if part["url"] is not None:
            content = yield Work(lambda: self._read(number * size, part["bytes"]))
            reply = yield from tried(Send(Request("PUT", part["url"], content=content)), self.pauses)
            if not reply.is_success:
                raise ClientError(
                    f"Part {part['number']} of {self.path.name} was rejected: {storage_rejection(reply)}"
                    " Upload it again, and ask the operator to check the storage if that does not help."
                )
        self.meter.add(part["bytes"])

    def _read(self, start: int, length: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(length)
