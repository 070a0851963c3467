"""What the commands of `seft` share: exit codes, connections, and output for programs and for people."""

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

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON: the answer of the API, or one object per line.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Any other field, such as repair.steps=100.", metavar="KEY=VALUE")
]
HASTY = (0.5, 1.0, 2.0)
PATIENT = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
PIPE_COLUMNS = 200
"""Width of a table that is not printed to a terminal."""


class Exit(IntEnum):
    """Exit codes of `seft`."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> "Exit":
        """Create a member with its meaning."""
        member = int.__new__(cls, value)
        member._value_, member.meaning = value, meaning
        return member

    DONE = 0, "Success."
    FAILED = 1, "The command ran and failed: the job did not succeed, the dataset is invalid, or the disk is full."
    USAGE = 2, "The command line, the address or the key is missing or invalid."
    UNREACHABLE = 3, "The service does not answer, or another server answers."
    REFUSED = 4, "The service rejected the request. The message names the field, the rule, the value and the way out."
    NOT_INTACT = 5, "A downloaded file differs from the published one."
    INTERRUPTED = 130, "Ctrl-C. A job continues. Run a download again to resume it."


@contextmanager
def reporting(as_json: bool) -> Iterator[None]:
    """Turn an error into one message on stderr, with `--json` also one JSON object, and the right exit code."""
    try:
        yield
    except (ClientError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        code = _exit_code(error)
        typer.echo(str(error), err=True)
        if as_json:
            typer.echo(json.dumps({"error": _error_object(error, code)}))
        raise typer.Exit(code) from error


@contextmanager
def connected(as_json: bool = False, *, patient: bool = False) -> Iterator["Client"]:
    """Yield a client of the service. A `patient` one retries long enough to survive a restart of the service."""
    from seft.client.http import Client

    with reporting(as_json), Client(pauses=PATIENT if patient else HASTY) as client:
        yield client


def ask_secret(what: str) -> str:
    """Read a secret from a hidden prompt or from a pipe. So neither `ps` nor the shell history shows it."""
    if sys.stdin.isatty():
        return str(typer.prompt(what, hide_input=True, err=True))
    return sys.stdin.readline().strip()


def show(answer: Mapping[str, object], as_json: bool, line: str) -> None:
    """Print an answer as JSON or as a line."""
    typer.echo(json.dumps(answer) if as_json else line)


def show_rows(
    answers: Iterable[Mapping[str, object]], as_json: bool, head: Sequence[str], rows: Iterable[Sequence[str]]
) -> None:
    """Print a list as JSON or as a table. The first column is never cut. Only the printed form is iterated."""
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
    """Return the console for tables and bars. Piped output is not cut to the width of a screen."""
    from rich.console import Console

    terminal = Console(stderr=stderr, highlight=False)
    return terminal if terminal.is_terminal else Console(stderr=stderr, highlight=False, width=PIPE_COLUMNS)


@contextmanager
def bytes_bar(words: str) -> Iterator["Progress | None"]:
    """Show a bar that counts bytes if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(words), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True)) as bar:
        bar.add_task("", total=None)
        yield bar


def advance(bar: "Progress | None", done: int, total: int) -> None:
    """Set the progress of the bar."""
    if bar:
        bar.update(bar.task_ids[0], completed=done, total=total)


def assigned(settings: Sequence[str] | None) -> Json:
    """Build a spec from options such as `--set repair.steps=100`. A value is JSON, or else text."""
    spec: Json = {}
    for setting in settings or []:
        path, text = split(setting, "--set", "repair.steps=100")
        *parents, name = path.split(".")
        inner = spec
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                rule = f"{parent} must be set either to a value or to its fields; it is set to both."
                raise typer.BadParameter(rule, param_hint="--set")
        try:
            value: Any = json.loads(text)
        except json.JSONDecodeError:
            value = text
        inner[name] = value
    return spec


def split(pair: str, option: str, example: str) -> tuple[str, str]:
    """Split NAME=VALUE. Raises BadParameter if there is no '='."""
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


def _error_object(error: Exception, code: Exit) -> Json:
    if isinstance(error, ApiProblem):
        flaws = [{name: getattr(flaw, name) for name in flaw.__slots__} for flaw in error.flaws]
        return {"code": error.code, "message": error.message, "errors": flaws, "request_id": error.request_id}
    return {"code": code.name.lower(), "message": str(error)}
