"""The library's own verbs as words of `seft`: handed over to `seft.cli`, which loads torch when there is work to do."""

import typer

from seft.client.shell import Exit

VERBS = {
    "prune": "Set a share of a model's weights to zero, on this machine.",
    "repair": "Train a pruned model, on this machine; it stays as sparse as it is.",
    "evaluate": "Judge a model on this machine: perplexity, multiple choice, or a named task.",
    "inspect": "Count the zeros in a folder's files.",
}
RAW = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def add_verbs(app: typer.Typer) -> None:
    """Make each verb a command whose words are its own business."""
    for verb, words in VERBS.items():
        app.command(verb, help=words, context_settings=RAW, add_help_option=False)(hand_over)


def hand_over(context: typer.Context) -> None:
    """Run the verb that was named, with all that follows it."""
    from seft.cli import main

    verb = str(context.info_name)
    try:
        code = main([verb, *context.args], program="seft")
    except ModuleNotFoundError as error:
        typer.echo(
            f"`seft {verb}` works on this machine and needs {error.name}: pip install '.[torch]' where this came from."
            " `seft jobs create` lets the service do the work.",
            err=True,
        )
        code = Exit.USAGE
    raise typer.Exit(code)
