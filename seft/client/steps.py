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
"""Callback that gets the number of transferred bytes and the total. Downloads call it from several threads, one call at
a time."""


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request. `path` is a path of the service, or a full URL of another server.

    The API key is never sent to another server.
    """

    method: str
    path: str
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    file: Path | None = None
    """File to send as the form field `file`."""
    content: bytes | None = None
    """Body of the request."""
    progress: Progress | None = None

    @property
    def is_link(self) -> bool:
        """True if the request goes to another server than the service."""
        return not self.path.startswith("/")


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP reply. The names in `headers` are case-insensitive.

    If it comes from `Open`, its content is not read yet. `url` is for messages: of a link it is only the host.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes
    url: str

    @property
    def is_success(self) -> bool:
        """True if the status is 2xx."""
        return 200 <= self.status < 300

    @property
    def is_problem(self) -> bool:
        """True if the service itself, and not a proxy or another server, wrote this error."""
        return self.headers.get("Content-Type", "").startswith("application/problem+json")


@dataclass(frozen=True, slots=True)
class Send:
    """Step: send a request and read the whole reply. The result is a Reply."""

    request: Request


@dataclass(frozen=True, slots=True)
class Open:
    """Step: send a request and keep its reply open for `Read`. The result is a Reply.

    Closes the previous open reply.
    """

    request: Request


@dataclass(frozen=True, slots=True)
class Read:
    """Step: read the next bytes of the open reply. The result is empty at the end of the reply."""


QUIET_SECONDS = 1.0
"""Seconds to wait before the next request if a request brought nothing new."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Step: wait for a number of seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """Step: call a slow function that needs no network. The result is its return value."""

    call: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Together:
    """Step: run several operations in parallel, `at_once` at a time. The first failure ends the others."""

    parts: "Sequence[Steps[None]]"
    at_once: int


@dataclass(frozen=True, slots=True)
class Row(Generic[T]):
    """One row for the caller who iterates over the operation. Drivers do not perform it."""

    value: T


Step = Send | Open | Read | Pause | Work | Together
Steps = Generator[Step, Any, T]
Flow = Generator[Step | Row[T], Any, None]


class Walk(Generic[T]):
    """Runs a generator of steps and passes it their results. Both drivers use it."""

    result: T

    def __init__(self, steps: Generator[Any, Any, T]) -> None:
        self._turn: Callable[[], Any] = lambda: next(steps)
        self._steps = steps

    def step(self) -> Any:
        """Return the next step of the generator, or None at its end. Then `result` is set."""
        try:
            return self._turn()
        except StopIteration as end:
            self.result = end.value
            return None

    def answer(self, value: object) -> None:
        """Pass the result of the last step to the generator, when it runs next."""
        self._turn = lambda: self._steps.send(value)

    def fail(self, error: Exception) -> None:
        """Raise the error of the last step inside the generator, when it runs next."""
        self._turn = lambda: self._steps.throw(error)


class Blocking:
    """Base class of a client whose methods block."""

    def run(self, steps: Steps[T]) -> T:
        """Perform the steps that an operation yields, one after another, and return its result."""
        raise NotImplementedError

    def rows(self, flow: Flow[T]) -> Iterator[T]:
        """Perform the steps and yield each row."""
        raise NotImplementedError


class Awaiting:
    """Base class of a client whose methods are awaited."""

    async def run(self, steps: Steps[T]) -> T:
        """Perform the steps that an operation yields, one after another, and return its result."""
        raise NotImplementedError

    def rows(self, flow: Flow[T]) -> AsyncIterator[T]:
        """Perform the steps and yield each row."""
        raise NotImplementedError


class operation(Generic[P, T]):  # noqa: N801 (a decorator)
    """Decorator that makes a method with one result from a generator of steps.

    The method is called as `client.job(…)` on a `Client` and `await client.job(…)` on an `AsyncClient`.
    """

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
        """Return the method, bound to its client."""
        if caller is None:
            return self

        @wraps(self.steps)
        def bound(*arguments: P.args, **named: P.kwargs) -> Any:
            return caller.run(self.steps(caller, *arguments, **named))

        return bound


class flow(Generic[P, T]):  # noqa: N801 (a decorator)
    """Decorator that makes a method that yields rows from a generator of steps.

    The method is used as `for row in …` on a `Client` and `async for row in …` on an `AsyncClient`.
    """

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
        """Return the method, bound to its client."""
        if caller is None:
            return self

        @wraps(self.steps)
        def bound(*arguments: P.args, **named: P.kwargs) -> Any:
            return caller.rows(self.steps(caller, *arguments, **named))

        return bound
