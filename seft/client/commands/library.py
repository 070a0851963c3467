"""The commands that use the library on this machine, from `seft prune` to `seft serve`. They need no service.

They call `seft.cli`, which imports torch only when a command runs. So `--help` works without the extra `torch`.
"""

import typer

from seft.command_texts import VERBS

RAW = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def add_verbs(app: typer.Typer) -> None:
    """Add these commands to the app. Each parses its own arguments."""
    for verb, text in VERBS.items():
        app.command(verb, help=text, context_settings=RAW, add_help_option=False)(run_verb)


def run_verb(context: typer.Context) -> None:
    """Run the named command with all its arguments."""
    from seft.cli import main

    raise typer.Exit(main([str(context.info_name), *context.args], program="seft"))
