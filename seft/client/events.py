"""A parser of server-sent events (WHATWG HTML, section 9.2)."""

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class EventReader:
    """Splits a byte stream into the data of its events. Ignores comments, which only keep the connection open."""

    _rest: bytes = b""
    _data: list[str] = field(default_factory=list)

    def feed(self, chunk: bytes) -> Iterator[str]:
        """Yield the data of each event that these bytes complete."""
        # A final \r may be the first half of \r\n.
        *lines, self._rest = (self._rest + chunk).replace(b"\r\n", b"\n").split(b"\n")
        for line in lines:
            if not line:
                if self._data:
                    yield "\n".join(self._data)
                self._data = []
            name, _, value = line.decode().partition(":")
            if name == "data":
                self._data.append(value.removeprefix(" "))
