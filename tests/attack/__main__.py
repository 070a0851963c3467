"""`python -m tests.attack [NAME ...]`: start the service, attack it, and print what was expected and what was seen."""

import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from local.servers import Servers, make_settings
from migrations import upgrade
from tests.attack import attacks
from tests.attack.attacks import Attack, Finding
from tests.attack.target import Target
from tests.attack.texts import unstorable_texts

ATTACKS: tuple[Attack, ...] = (
    attacks.header_bomb,
    attacks.huge_config,
    attacks.slow_hub,
    attacks.waits,
    attacks.random_keys,
    attacks.preview_flood,
    attacks.dripping_receivers,
    attacks.priority_flood,
    unstorable_texts,
    attacks.paths_in_sources,
    attacks.imports_of_a_killed_api,
)
NAMES = {attack.__name__: attack for attack in ATTACKS}


def findings(target: Target, attack: Attack) -> Iterator[Finding]:
    """Run an attack. If it ends with an error, the error is its last finding. A dead API is started again."""
    try:
        yield from attack(target)
    except Exception as error:
        yield Finding("no error", f"{type(error).__name__}: {error}", good=False)
    if not target.api.running:
        yield Finding("the API runs", "it has ended", good=False)
        target.api.start()


def run(
    names: Annotated[list[str] | None, typer.Argument(help="Names of attacks. Default: all.")] = None,
    rate: Annotated[float, typer.Option(help="Requests of a flood per second. A busy machine needs fewer.")] = 200,
) -> None:
    """Print a table. The exit status is 1 if a finding is not as expected."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    table, good, console = Table("attack", "expected", "seen", box=None), True, Console()
    with TemporaryDirectory() as name, Servers(Path(name) / "servers") as servers:
        settings = make_settings(servers.environment())
        upgrade(settings)
        with Target(settings, Path(name), rate) as target:
            for attack in (NAMES[each] for each in names or NAMES):
                for finding in findings(target, attack):
                    wrong = "" if finding.good else "NOT AS EXPECTED: "
                    table.add_row(attack.__name__.replace("_", " "), finding.expected, wrong + finding.seen)
                    good = good and finding.good
                console.print(f"{attack.__name__} is done")
    console.print(table)
    sys.exit(not good)


if __name__ == "__main__":
    typer.run(run)
