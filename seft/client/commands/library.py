"""The commands that use the library on this machine, from `seft prune` to `seft serve`. They need no service.

They call `seft.cli`, which imports torch only when a command runs. So `--help` works without the extra `torch`.
"""

from typing import Any

import typer
from typer.core import TyperCommand
from typing_extensions import override

from seft.command_texts import VERBS


class _Unparsed(TyperCommand):
    """A command that gets its arguments as they were typed, also `--`, which Typer would leave out."""

    @override
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.args = args
        return args


def add_verbs(app: typer.Typer) -> None:
    """Add these commands to the app. Each parses its own arguments."""
    for verb, text in VERBS.items():
        app.command(verb, help=text, cls=_Unparsed, add_help_option=False)(run_verb)


def run_verb(context: typer.Context) -> None:
    """Run the named command with all its arguments."""
    from seft.cli import main

    raise typer.Exit(main([str(context.info_name), *context.args], program="seft"))
