"""The command `seft`. It calls the client of the service, and shows results as tables and progress as bars."""

import json
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typing_extensions import override

from seft import __version__
from seft.client.commands import datasets, doctor, estimates, hub_token, jobs, keys, library, models, webhooks, workers
from seft.client.shell import Exit


class _Root(TyperGroup):
    """The command `seft`. With `--json`, it also prints a wrong command line as a JSON object."""

    as_json = False

    @override
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        self.as_json = "--json" in args
        return super().parse_args(ctx, args)

    @override
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            # The class of these errors has no public name in typer.
            if self.as_json and hasattr(error, "format_message"):
                message = {"code": Exit.USAGE.name.lower(), "message": error.format_message()}
                typer.echo(json.dumps({"error": message}))
            raise


app = typer.Typer(
    cls=_Root,
    help="Make language models sparse and repair them.",
    no_args_is_help=True,
    # Plain help: the library for coloured help takes longer to load than everything else.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"seft {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Take the options that belong to no command."""


app.command()(keys.login)
app.add_typer(jobs.app, name="jobs")
app.add_typer(datasets.app, name="datasets")
app.add_typer(keys.app, name="keys")
app.add_typer(hub_token.app, name="hub-token")
app.add_typer(webhooks.app, name="webhooks")
app.command()(keys.audit)
app.command()(workers.workers)
app.command()(models.models)
app.command()(estimates.estimate)
app.command()(doctor.doctor)
library.add_verbs(app)
