"""`seft hub-token`: the tenant's token for the Hugging Face hub, which gives access to private models and datasets."""

import typer

from seft.client.responses import HubToken
from seft.client.shell import AsJson, ask_secret, connected, show

app = typer.Typer(help="Manage your tenant's token of the model hub.", no_args_is_help=True, rich_markup_mode=None)


@app.command("set")
def set_token(as_json: AsJson = False) -> None:
    """Store the token for the Hugging Face hub, read from a prompt or stdin. Replaces the previous token."""
    token = ask_secret("Token of the hub")
    with connected(as_json) as service:
        _show(service.put_hub_token(token), as_json, "stored")


@app.command("show")
def show_token(as_json: AsJson = False) -> None:
    """Show the owner and the date of the stored hub token. The token itself is never shown."""
    with connected(as_json) as service:
        _show(service.hub_token(), as_json, "stored")


@app.command()
def delete(as_json: AsJson = False) -> None:
    """Delete the stored hub token."""
    with connected(as_json) as service:
        _show(service.delete_hub_token(), as_json, "deleted; it was stored")


def _show(token: HubToken, as_json: bool, what: str) -> None:
    show(token, as_json, f"{token['name']}  {what} {token['created_at']}")
