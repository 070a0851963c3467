"""What a call does, told apart from how it is done.

An operation is a generator: it yields steps (send this, wait so long) and is given what came of each. It does nothing
itself, so the same lines serve the client that blocks and the one that awaits; `seft.client.http` has a driver for each.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

P = ParamSpec("P")
T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Told how many bytes are done, and of how many; downloads call it from several threads, one at a time."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request. `path` is one of the service's, or a whole link, which is never shown the API key."""

    method: str
    path: str
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    file: Path | None = None
    """Sent as the form's part `file`."""
    content: bytes | None = None
    """Sent as it is."""
    progress: Progress | None = None

    @property
    def is_link(self) -> bool:
        """Whether it goes elsewhere than to the service."""
        return not self.path.startswith("/")


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. `headers` do not mind the case of a name; of an opened reply the content is still to be read."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    url: str

    @property
    def is_success(self) -> bool:
        """Whether the status says so."""
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request and read the whole reply. Gives a Reply."""

    request: Request


@dataclass(frozen=True, slots=True)
class Open:
    """Send a request and leave its reply open for Read; the one opened before is closed. Gives a Reply."""

    request: Request


@dataclass(frozen=True, slots=True)
class Read:
    """The next bytes of what is open; none at its end."""


QUIET_SECONDS = 1.0
"""Between two questions with the same answer."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Let time go by."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """Call something that takes a while and needs no network. Gives what it gives."""

    call: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Together:
    """Run these, so many at a time. The first that fails ends the others."""

    parts: "Sequence[Steps[None]]"
    at_once: int


@dataclass(frozen=True, slots=True)
class Row(Generic[T]):
    """Not for the driver: one row of a flow, for whoever iterates."""

    value: T


Step = Send | Open | Read | Pause | Work | Together
Steps = Generator[Step, Any, T]
Flow = Generator[Step | Row[T], Any, None]


class Walk(Generic[T]):
    """A generator on its way: what both drivers do with it, apart from taking its steps."""

    result: T

    def __init__(self, steps: Generator[Any, Any, T]) -> None:
        self._turn: Callable[[], Any] = lambda: next(steps)
        self._steps = steps

    def step(self) -> Any:
        """The next step, or None at the end: then there is a result."""
        try:
            return self._turn()
        except StopIteration as end:
            self.result = end.value
            return None

    def answer(self, value: object) -> None:
        """Go on with what came of the step."""
        self._turn = lambda: self._steps.send(value)

    def fail(self, error: Exception) -> None:
        """Go on with what went wrong."""
        self._turn = lambda: self._steps.throw(error)


class Blocking:
    """A caller who waits."""

    def run(self, steps: Steps[T]) -> T:
        """Take all steps."""
        raise NotImplementedError

    def rows(self, flow: Flow[T]) -> Iterator[T]:
        """Take the steps to the next row, and so on."""
        raise NotImplementedError


class Awaiting:
    """A caller who awaits."""

    async def run(self, steps: Steps[T]) -> T:
        """Take all steps."""
        raise NotImplementedError

    def rows(self, flow: Flow[T]) -> AsyncIterator[T]:
        """Take the steps to the next row, and so on."""
        raise NotImplementedError


class operation(Generic[P, T]):  # noqa: N801 (a decorator)
    """A method that answers once: `client.job(…)` of one who waits, `await client.job(…)` of one who awaits."""

    def __init__(self, steps: Callable[Concatenate[Any, P], Steps[T]]) -> None:
        self.steps = steps
        self.__doc__ = steps.__doc__

    @overload
    def __get__(self, caller: None, owner: type) -> Self: ...
    @overload
    def __get__(self, caller: Blocking, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, caller: Awaiting, owner: type) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, caller: Any, owner: type) -> Any:
        """The method, bound to its caller."""
        if caller is None:
            return self

        @wraps(self.steps)
        def bound(*arguments: P.args, **named: P.kwargs) -> Any:
            return caller.run(self.steps(caller, *arguments, **named))

        return bound


class flow(Generic[P, T]):  # noqa: N801 (a decorator)
    """A method that answers row after row: for `for` of one who waits, for `async for` of one who awaits."""

    def __init__(self, steps: Callable[Concatenate[Any, P], Flow[T]]) -> None:
        self.steps = steps
        self.__doc__ = steps.__doc__

    @overload
    def __get__(self, caller: None, owner: type) -> Self: ...
    @overload
    def __get__(self, caller: Blocking, owner: type) -> Callable[P, Iterator[T]]: ...
    @overload
    def __get__(self, caller: Awaiting, owner: type) -> Callable[P, AsyncIterator[T]]: ...
    def __get__(self, caller: Any, owner: type) -> Any:
        """The method, bound to its caller."""
        if caller is None:
            return self

        @wraps(self.steps)
        def bound(*arguments: P.args, **named: P.kwargs) -> Any:
            return caller.rows(self.steps(caller, *arguments, **named))

        return bound
