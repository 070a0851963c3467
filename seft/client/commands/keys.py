"""`seft keys`, `seft audit`, `seft login`: API keys, the audit log, and the stored login."""

import os
import sys
from typing import Annotated

import typer

from seft.client.shell import AsJson, ask_secret, connected, reporting, show, show_rows

app = typer.Typer(help="Manage API keys. Needs a key of scope admin.", no_args_is_help=True, rich_markup_mode=None)


@app.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="Who or what will use the key.")],
    scope: Annotated[str, typer.Option(help="read, write or admin.")] = "write",
    as_json: AsJson = False,
) -> None:
    """Create a key and print it. It is never shown again."""
    with connected(as_json) as service:
        key = service.create_key(name, scope)
        show(key, as_json, key["secret"])


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List keys, newest first, without their secrets."""
    with connected(as_json) as service:
        keys = service.api_keys()
        rows = (
            [
                key["id"],
                key["name"],
                key["scope"],
                (key["last_used_at"] or "never")[:16],
                (key["revoked_at"] or "")[:16],
            ]
            for key in keys
        )
        show_rows(keys, as_json, ("key", "name", "scope", "last used", "revoked"), rows)


@app.command()
def revoke(key_id: str, as_json: AsJson = False) -> None:
    """Revoke a key immediately and permanently."""
    with connected(as_json) as service:
        key = service.revoke_key(key_id)
        show(key, as_json, f"{key['id']}  revoked {key['revoked_at']}")


def audit(as_json: AsJson = False) -> None:
    """Print every change made with one of your tenant's keys, newest first."""
    with connected(as_json) as service:
        for entry in service.audit():
            line = "  ".join([entry["created_at"], entry["key_id"], entry["action"], entry["target"]])
            show(entry, as_json, line)


def login(
    url: Annotated[str | None, typer.Option(help="Address of the service. Default: SEFT_URL, or else ask.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask for address and key, test them, and save them to a file that only you can read.

    The key may come from stdin.
    """
    from seft.client.config import Address, require_http
    from seft.client.errors import SetupError
    from seft.client.http import Client

    with reporting(as_json):
        if url is None:
            url = os.environ.get("SEFT_URL") or None
        if url is None and sys.stdin.isatty():
            url = typer.prompt("Address of the service, such as https://seft.example.com", err=True)
        if url is None:
            raise SetupError("The address of the service is missing. Run `seft login --url ADDRESS`, or set SEFT_URL.")
        address = Address(require_http(url), ask_secret("API key"))
        with Client(address.url, address.api_key) as service:
            version = service.version()["version"]
            next(iter(service.datasets()), None)
        path = address.save()
    for name, value in (("SEFT_URL", address.url), ("SEFT_API_KEY", address.api_key)):
        if os.environ.get(name) not in (None, "", value):
            typer.echo(
                f"The variable {name} is set to another value, and has priority over the file. Unset it.", err=True
            )
    answer = {"url": address.url, "version": version, "file": str(path)}
    show(answer, as_json, f"{address.url} runs version {version} and accepts the key. Saved to {path}.")
