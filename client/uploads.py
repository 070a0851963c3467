"""Send a large file in parts, several at once, straight to the object storage.

What the storage has is not sent again: after anything that ended it early, the same file goes on where it was.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from client.answers import Import, ImportPart, Json
from client.downloads import Meter
from client.errors import ApiProblem, ClientError
from client.retries import tried
from client.steps import Progress, Request, Send, Steps, Together, Work

PARTS_FROM = 100 << 20
"""Files up to this size are sent with one request."""
Call = Callable[[Request], Steps[Json]]


def send(
    begun: Import, path: Path, *, call: Call, at_once: int, progress: Progress | None, pauses: Sequence[float]
) -> Steps[None]:
    """Send the parts of a begun import that are not there; `call` asks the service."""
    session = _Session(path, f"/imports/{begun['id']}/parts", call, pauses, Meter(progress, path.stat().st_size))
    yield Together([session.part(number, begun["part_bytes"] or 0) for number in range(begun["parts"] or 0)], at_once)


def identity(path: Path) -> str:
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
