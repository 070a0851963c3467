"""`python -m local up|down|run|demo`: run the whole service on this machine."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from local import background
from local.demo import demonstrate
from local.folder import bypass_proxies
from local.processes import LocalError
from local.stack import ENVIRONMENT_FILE
from seft.client.errors import ClientError

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
Folder = Annotated[Path, typer.Option(help="Folder of the stack's data, logs, ports and secrets.")]
DEFAULT = Path(".local")
CHECKOUT = Path(__file__).parents[1]


@app.command()
def up(folder: Folder = DEFAULT) -> None:
    """Start the stack in the background. Print its addresses, an API key and the commands of an operator.

    If the stack already runs, only print them.
    """
    running = background.find(folder) or background.start(folder, _show)
    python, data, environment = map(_quote, (sys.executable, folder.resolve(), folder.resolve() / ENVIRONMENT_FILE))
    here = f"  (cd {_quote(CHECKOUT)} &&"
    typer.echo(
        f"dashboard  {running.url}/\n"
        f"API        {running.url}\n"
        f"docs       {running.url}/docs\n"
        f"data, logs {folder.resolve()}\n\n"
        f"export SEFT_URL={running.url} SEFT_API_KEY={running.api_key}\n\n"
        "Commands of the operator, from any folder. The file env has the settings and the secrets of the stack.\n"
        f"{here} . {environment} && {python} -m seft doctor)\n"
        f"{here} . {environment} && {python} -m api keys create --name NAME)\n"
        f"{here} {python} -m local down --folder {data})"
    )


@app.command()
def down(folder: Folder = DEFAULT) -> None:
    """Stop the stack and wait until its last process has ended. The stack's data are kept."""
    typer.echo("stopped" if background.stop(folder, _show) else "not running")


@app.command()
def run(folder: Folder = DEFAULT) -> None:
    """Run the stack in the foreground until Ctrl-C."""
    background.supervise(folder)


@app.command()
def demo(folder: Folder = DEFAULT) -> None:
    """Prune and repair a real language model through the service, then download it and generate text with it."""
    if running := background.find(folder):
        demonstrate(running.url, running.api_key)
        return
    with background.attached(folder, _show) as running:
        demonstrate(running.url, running.api_key)


def _quote(word: object) -> str:
    """Return a word of a command line for a shell."""
    return shlex.quote(str(word))


def _show(step: str) -> None:
    typer.echo(f"{step} ...", err=True)


def main() -> None:
    """Run a command. An error that the user can fix is printed without a traceback, with exit code 2."""
    bypass_proxies()
    try:
        app()
    except (LocalError, ClientError, PermissionError) as error:
        typer.echo(str(error), err=True)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
