"""What the commands of `seft` share: exit codes, a service to talk to, and answers for programs or for people."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seft.client.errors import ApiProblem, ClientError, IntegrityError, SetupError, Unreachable
from seft.client.responses import Json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from seft.client.http import Client

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON: the API's answer, or one object a line as it goes.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Any other field, as repair.steps=100.", metavar="KEY=VALUE")
]
HASTY = (0.5, 1.0, 2.0)
PATIENT = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
PIPE_COLUMNS = 200
"""Width of a table that no person looks at."""


class Exit(IntEnum):
    """How `seft` ends."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> "Exit":
        """A number that knows what it means."""
        member = int.__new__(cls, value)
        member._value_, member.meaning = value, meaning
        return member

    DONE = 0, "It is done."
    FAILED = 1, "It was tried and did not work out: the job did not succeed, the dataset is wrong, the disk is full."
    USAGE = 2, "The command line, the address or the key is missing or cannot be understood."
    UNREACHABLE = 3, "The service does not answer, or what answers is not the service."
    REFUSED = 4, "The service refuses; the message names field, rule, value and way out."
    NOT_INTACT = 5, "A downloaded file is not the one that was published."
    INTERRUPTED = 130, "Ctrl-C. A job goes on; a download goes on when it is asked for again."


@contextmanager
def reporting(as_json: bool) -> Iterator[None]:
    """What goes wrong in here is one clear message, for programs also one object, and the exit code for it."""
    try:
        yield
    except (ClientError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        code = _exit_code(error)
        typer.echo(str(error), err=True)
        if as_json:
            typer.echo(json.dumps({"error": _told(error, code)}))
        raise typer.Exit(code) from error


@contextmanager
def connected(as_json: bool = False, *, patient: bool = False) -> Iterator["Client"]:
    """A client of the service. Somebody waits for a short answer; what follows a job outlives a deployment."""
    from seft.client.http import Client

    with reporting(as_json), Client(pauses=PATIENT if patient else HASTY) as client:
        yield client


def asked(what: str) -> str:
    """A secret, typed unseen by a person or read from a pipe: no list of processes and no history shows it."""
    if sys.stdin.isatty():
        return str(typer.prompt(what, hide_input=True, err=True))
    return sys.stdin.readline().strip()


def show(answer: Mapping[str, object], as_json: bool, line: str) -> None:
    """Print an answer for a program or for a person."""
    typer.echo(json.dumps(answer) if as_json else line)


def show_rows(
    answers: Iterable[Mapping[str, object]], as_json: bool, head: Sequence[str], rows: Iterable[Sequence[str]]
) -> None:
    """Print a list: as JSON, or as a table whose first column is never cut. Only what is printed is iterated."""
    if as_json:
        typer.echo(json.dumps(list(answers)))
        return
    from rich.table import Column, Table

    first, *others = head
    table = Table(Column(first, no_wrap=True, min_width=30), *others, box=None, pad_edge=False, show_header=any(head))
    for row in rows:
        table.add_row(*row)
    console().print(table)


def console(*, stderr: bool = False) -> "Console":
    """Where tables and bars go; what is piped is not cut to a screen's width."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=PIPE_COLUMNS)


@contextmanager
def bytes_bar(words: str) -> Iterator["Progress | None"]:
    """A bar on stderr that counts bytes, where somebody looks."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(words), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True)) as bar:
        bar.add_task("", total=None)
        yield bar


def advance(bar: "Progress | None", done: int, total: int) -> None:
    """Move the bar's only task."""
    if bar:
        bar.update(bar.task_ids[0], completed=done, total=total)


def assigned(settings: Sequence[str] | None) -> Json:
    """What `--set repair.steps=100` and its like say: each value is JSON, or else a word."""
    spec: Json = {}
    for setting in settings or []:
        path, text = split(setting, "--set", "repair.steps=100")
        *parents, name = path.split(".")
        inner = spec
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise typer.BadParameter(f"{parent} is set to a value and to fields of it.", param_hint="--set")
        try:
            value: Any = json.loads(text)
        except json.JSONDecodeError:
            value = text
        inner[name] = value
    return spec


def split(pair: str, option: str, example: str) -> tuple[str, str]:
    """The two sides of NAME=VALUE."""
    name, equals, value = pair.partition("=")
    if not equals:
        raise typer.BadParameter(f"{pair!r} has no '='. Write it as {example}.", param_hint=option)
    return name, value


def _exit_code(error: Exception) -> Exit:
    match error:
        case ApiProblem(code="unknown") | Unreachable():
            return Exit.UNREACHABLE
        case ApiProblem():
            return Exit.REFUSED
        case SetupError():
            return Exit.USAGE
        case IntegrityError():
            return Exit.NOT_INTACT
        case _:
            return Exit.FAILED


def _told(error: Exception, code: Exit) -> Json:
    if isinstance(error, ApiProblem):
        flaws = [{name: getattr(flaw, name) for name in flaw.__slots__} for flaw in error.flaws]
        return {"code": error.code, "message": error.message, "errors": flaws, "request_id": error.request_id}
    return {"code": code.name.lower(), "message": str(error)}
