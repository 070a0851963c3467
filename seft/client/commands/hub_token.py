"""`seft hub-token`: the tenant's own token of the model hub, which opens private models and datasets."""

import typer

from seft.client.responses import HubToken
from seft.client.shell import AsJson, asked, connected, show

app = typer.Typer(
    help="Your tenant's token of the model hub, for private models.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("set")
def give(as_json: AsJson = False) -> None:
    """Ask for the token, or read it from stdin, and give it; it takes the place of the one before."""
    token = asked("Token of the hub")
    with connected(as_json) as service:
        _show(service.give_hub_token(token), as_json, "given")


@app.command("show")
def show_token(as_json: AsJson = False) -> None:
    """Tell whose token was given, and when; the token itself nobody is told."""
    with connected(as_json) as service:
        _show(service.hub_token(), as_json, "given")


@app.command()
def delete(as_json: AsJson = False) -> None:
    """Have the service forget it."""
    with connected(as_json) as service:
        _show(service.delete_hub_token(), as_json, "deleted; it was given")


def _show(found: HubToken, as_json: bool, what: str) -> None:
    show(found, as_json, f"{found['name']}  {what} {found['created_at']}")
