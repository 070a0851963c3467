"""`python -m tests.fuzz`: servers of its own, and thousands of calls."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from local.servers import Servers, make_settings
from migrations import upgrade
from tests.fuzz.run import fuzz


def main(
    examples: Annotated[int, typer.Option(help="Generated calls of an operation in each phase, at most.")] = 200,
    least: Annotated[int, typer.Option(help="Fewer calls in all than these are a failure.")] = 5000,
    seed: Annotated[int | None, typer.Option(help="Repeats a run.")] = None,
) -> None:
    """Call every operation of a running API; exit code 1 when an answer breaks a promise of the OpenAPI."""
    with TemporaryDirectory() as name, Servers(Path(name) / "servers") as servers:
        settings = make_settings(servers.environment())
        upgrade(settings)
        done = fuzz(settings, Path(name), examples=examples, seed=seed)
    typer.echo(done.output)
    typer.echo(f"{done.statuses.total()} calls: " + ", ".join(f"{n} x {s}" for s, n in done.statuses.most_common()))
    if done.broken or done.statuses.total() < least:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
