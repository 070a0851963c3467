"""Server-sent events, read from bytes as they come."""

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class EventReader:
    """Cuts a stream into the data of its events; comments, which keep the line alive, are dropped."""

    _rest: bytes = b""
    _data: list[str] = field(default_factory=list)

    def feed(self, chunk: bytes) -> Iterator[str]:
        """The data of each event that these bytes complete."""
        # A \r at the end may be the first half of \r\n.
        *lines, self._rest = (self._rest + chunk).replace(b"\r\n", b"\n").split(b"\n")
        for line in lines:
            if not line:
                if self._data:
                    yield "\n".join(self._data)
                self._data = []
            name, _, value = line.decode().partition(":")
            if name == "data":
                self._data.append(value.removeprefix(" "))
