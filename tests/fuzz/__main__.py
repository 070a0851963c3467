"""`python -m tests.fuzz`: start servers and an API, and call the API thousands of times."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from local.servers import Servers, make_settings
from migrations import upgrade
from tests.fuzz.run import fuzz


def main(
    examples: Annotated[int, typer.Option(help="Maximum number of generated calls per operation and phase.")] = 200,
    least: Annotated[int, typer.Option(help="Minimum number of calls in total. Fewer are a failure.")] = 5000,
    seed: Annotated[int | None, typer.Option(help="Seed, to repeat a run.")] = None,
) -> None:
    """Call every operation of a running API. The exit code is 1 if an answer violates the OpenAPI document."""
    with TemporaryDirectory() as name, Servers(Path(name) / "servers") as servers:
        settings = make_settings(servers.environment())
        upgrade(settings)
        result = fuzz(settings, Path(name), examples=examples, seed=seed)
    typer.echo(result.output)
    typer.echo(f"{result.statuses.total()} calls: " + ", ".join(f"{n} x {s}" for s, n in result.statuses.most_common()))
    if result.broken or result.statuses.total() < least:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
