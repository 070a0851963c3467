"""Code that all commands of `seft` share: exit codes, connections, and output for programs and for people."""

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seft import exit_codes
from seft.client.errors import ApiProblem, ClientError, IntegrityError, SetupError, Unreachable
from seft.client.responses import Dataset, Json

if TYPE_CHECKING:
    from rich.console import Console

    from seft.client.http import Client

Model = Annotated[
    str | None,
    typer.Option(
        help="A hub id, the path of a model in a folder that the operator made available on the server, or a job's id."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON: the answer of the API, or one object per line.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help='Any other field, such as repair.steps=100. A list is JSON: \'output.formats=["dense", "compact"]\'.',
        metavar="KEY=VALUE",
    ),
]
Settings = Annotated[
    Path | None,
    typer.Option("--file", help="JSON file with fields of the job, such as settings for a CPU.", metavar="JSON"),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask. It never asks if the input is not a terminal.")]
LISTS = ("output.formats",)
"""Fields of a job whose value is a list. On the command line, one word stands for a list of this word."""
Exit = exit_codes.Exit
HASTY = (0.5, 1.0, 2.0)
PATIENT = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
PIPE_COLUMNS = 200
"""Width of a table, in characters, if the output is not a terminal."""


def finite(value: float | None) -> float | None:
    """Return the number of an option. Raises BadParameter if it is NaN or infinite, which JSON does not have."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"must be a finite number; it is {value}. Write it as a number, such as 0.6.")
    return value


Sparsity = Annotated[
    float | None,
    typer.Option(help="Fraction of zeros, such as 0.6. An N:M pattern implies it.", callback=finite),
]


@contextmanager
def reporting(as_json: bool) -> Iterator[None]:
    """Convert errors of the `with` block to one message on stderr and the exit code of the error.

    With `--json`, also print the error as a JSON object.
    """
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
    """Yield a client of the service. With `patient`, it retries long enough to survive a restart of the service.

    Errors are reported as in `reporting`.
    """
    from seft.client.http import Client

    with reporting(as_json), Client(pauses=PATIENT if patient else HASTY) as client:
        yield client


def ask_secret(what: str) -> str:
    """Return a secret from a hidden prompt or from a pipe, so that neither `ps` nor the shell history shows it."""
    if sys.stdin.isatty():
        return str(typer.prompt(what, hide_input=True, err=True))
    return sys.stdin.readline().strip()


def show(answer: Mapping[str, object], as_json: bool, line: str) -> None:
    """Print a response of the service as JSON, or print `line` instead."""
    typer.echo(json.dumps(answer) if as_json else line)


def show_rows(
    answers: Iterable[Mapping[str, object]], as_json: bool, head: Sequence[str], rows: Iterable[Sequence[str]]
) -> None:
    """Print a list of responses as JSON, or `rows` as a table. The first column is never cut.

    Only the printed one of the two is iterated.
    """
    if as_json:
        typer.echo(json.dumps(list(answers)))
        return
    from rich.table import Column, Table
    from rich.text import Text

    first, *others = head
    table = Table(Column(first, no_wrap=True, min_width=30), *others, box=None, pad_edge=False, show_header=any(head))
    for row in rows:
        # Text, because rich would read the brackets in a name as markup.
        table.add_row(*map(Text, row))
    console().print(table)


def console(*, stderr: bool = False) -> "Console":
    """Return the rich console for tables and bars. Output to a pipe is not cut to the width of a screen."""
    from rich.console import Console

    terminal = Console(stderr=stderr, highlight=False)
    return terminal if terminal.is_terminal else Console(stderr=stderr, highlight=False, width=PIPE_COLUMNS)


@contextmanager
def bytes_bar(words: str) -> Iterator[Callable[[int, int], None] | None]:
    """Yield a function that shows a number of bytes and their total on a bar, or None if stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    # A name of a file may have braces and brackets, so it is neither a format nor markup.
    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True)) as bar:
        task = bar.add_task(words, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def uploaded(service: "Client", path: Path, skip: float = 0.0) -> Dataset:
    """Upload a file with a progress bar. `skip` is the percentage of invalid records to leave out."""
    with bytes_bar(path.name) as bar:
        return service.upload_dataset(path, invalid_sample_skip_percentage=skip, progress=bar)


def confirm(question: str, *, yes: bool) -> None:
    """Ask a person before data is deleted, and end the command with exit code 1 if the answer is no."""
    if not yes and sys.stdin.isatty():
        typer.confirm(question, abort=True, err=True)


def assigned(settings: Sequence[str] | None, file: Path | None = None) -> Json:
    """Return the spec in a JSON file, changed by options such as `--set repair.steps=100`.

    A value that is not JSON is text, also NaN and Infinity.
    """
    spec = _read_spec(file) if file else {}
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
            value = _read_json(text)
        except ValueError:
            value = [text] if path in LISTS else text
        inner[name] = value
    return spec


def require_field(spec: Json, name: str) -> None:
    """Raise BadParameter if a field is given neither by its option, nor by --set, nor by --file."""
    if spec.get(name) is None:
        rule = f"must be set; it is not. Give --{name}, or the field {name} in --file."
        raise typer.BadParameter(rule, param_hint=f"--{name}")


def _read_spec(file: Path) -> Json:
    try:
        spec = _read_json(file.read_bytes())
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be read: {error.strerror}.", param_hint="--file") from None
    except ValueError as error:
        raise typer.BadParameter(f"{file} must contain JSON: {error}.", param_hint="--file") from None
    if not isinstance(spec, dict):
        rule = f'{file} must contain one JSON object, such as {{"repair": {{"steps": 14}}}}.'
        raise typer.BadParameter(rule, param_hint="--file")
    return spec


def _read_json(text: str | bytes) -> Any:
    """Return the value of a JSON text. Raises ValueError also for NaN and infinity, which JSON does not have."""
    value = json.loads(text)
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise ValueError("a number must be finite, not NaN or infinite") from None
    return value


def split(pair: str, option: str, example: str) -> tuple[str, str]:
    """Return NAME and VALUE of `NAME=VALUE`. Raises BadParameter if there is no '='."""
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
