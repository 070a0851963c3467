"""The steps of an operation, separate from the I/O that performs them (sans-I/O).

An operation is a generator. It yields steps (send this request, wait that long) and receives the result of each. It
does no I/O itself, so the blocking and the asynchronous client share it. `seft.client.drivers` performs the steps.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

P = ParamSpec("P")
T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Callback with the bytes done and the total bytes. Downloads call it from several threads, one call at a time."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request. `path` is a path of the service, or a full URL, to which the API key is never sent."""

    method: str
    path: str
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    file: Path | None = None
    """File to send as the form field `file`."""
    content: bytes | None = None
    """Raw body."""
    progress: Progress | None = None

    @property
    def is_link(self) -> bool:
        """Whether the request goes to another server than the service."""
        return not self.path.startswith("/")


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply. `headers` ignore the case of names. The content of an opened reply has not been read yet."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    url: str

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request and read the whole reply. The result is a Reply."""

    request: Request


@dataclass(frozen=True, slots=True)
class Open:
    """Send a request and keep its reply open for Read. Closes the previous open reply. The result is a Reply."""

    request: Request


@dataclass(frozen=True, slots=True)
class Read:
    """Read the next bytes of the open reply. Empty at its end."""


QUIET_SECONDS = 1.0
"""Seconds between two requests if the first one brought nothing new."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """Call a slow function that needs no network. The result is its return value."""

    call: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Together:
    """Run these in parallel, `at_once` at a time. The first failure ends the others."""

    parts: "Sequence[Steps[None]]"
    at_once: int


@dataclass(frozen=True, slots=True)
class Row(Generic[T]):
    """One row of a flow, for the caller who iterates. Drivers do not handle it."""

    value: T


Step = Send | Open | Read | Pause | Work | Together
Steps = Generator[Step, Any, T]
Flow = Generator[Step | Row[T], Any, None]


class Walk(Generic[T]):
    """The progress of a generator: the part that both drivers share."""

    result: T

    def __init__(self, steps: Generator[Any, Any, T]) -> None:
        self._turn: Callable[[], Any] = lambda: next(steps)
        self._steps = steps

    def step(self) -> Any:
        """Return the next step, or None at the end. Then `result` is set."""
        try:
            return self._turn()
        except StopIteration as end:
            self.result = end.value
            return None

    def answer(self, value: object) -> None:
        """Continue with the result of the step."""
        self._turn = lambda: self._steps.send(value)

    def fail(self, error: Exception) -> None:
        """Continue with the error of the step."""
        self._turn = lambda: self._steps.throw(error)


class Blocking:
    """A caller that blocks."""

    def run(self, steps: Steps[T]) -> T:
        """Perform all steps and return the result."""
        raise NotImplementedError

    def rows(self, flow: Flow[T]) -> Iterator[T]:
        """Perform the steps and yield each row."""
        raise NotImplementedError


class Awaiting:
    """A caller that awaits."""

    async def run(self, steps: Steps[T]) -> T:
        """Perform all steps and return the result."""
        raise NotImplementedError

    def rows(self, flow: Flow[T]) -> AsyncIterator[T]:
        """Perform the steps and yield each row."""
        raise NotImplementedError


class operation(Generic[P, T]):  # noqa: N801 (a decorator)
    """A method with one result: `client.job(…)` of `Client`, `await client.job(…)` of `AsyncClient`."""

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
    """A method that yields rows: `for row in …` of `Client`, `async for row in …` of `AsyncClient`."""

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
