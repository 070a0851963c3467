"""`seft keys`, `seft audit`, `seft login`: who may talk to the service, and who did what."""

import sys
from typing import Annotated

import typer

from seft.client.shell import AsJson, asked, connected, reporting, show, show_rows

LOCAL = "http://127.0.0.1:8000"

app = typer.Typer(
    help="API keys of your tenant, for a key of scope admin.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="Who or what will use it.")],
    scope: Annotated[str, typer.Option(help="read, write, admin or metrics.")] = "write",
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, this once."""
    with connected(as_json) as service:
        key = service.create_key(name, scope)
        show(key, as_json, key["secret"])


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List keys, newest first; none of them shows its secret."""
    with connected(as_json) as service:
        found = service.api_keys()
        rows = (
            [
                key["id"],
                key["name"],
                key["scope"],
                (key["last_used_at"] or "never")[:16],
                (key["revoked_at"] or "")[:16],
            ]
            for key in found
        )
        show_rows(found, as_json, ("key", "name", "scope", "last used", "revoked"), rows)


@app.command()
def revoke(key_id: str, as_json: AsJson = False) -> None:
    """End a key at once and for ever."""
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
    url: Annotated[str | None, typer.Option(help="Address of the service; asked for where it is not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask for address and key, try them, and keep them in a file that only you can read. A key may come by stdin."""
    from seft.client.config import Address, checked
    from seft.client.http import Client

    if url is None:
        url = typer.prompt("Address of the service", default=LOCAL, err=True) if sys.stdin.isatty() else LOCAL
    key = asked("API key")
    with reporting(as_json):
        address = Address(checked(url), key)
        with Client(address.url, address.api_key) as service:
            version = service.version()["version"]
            next(iter(service.datasets()), None)
        path = address.keep()
    answer = {"url": address.url, "version": version, "file": str(path)}
    show(answer, as_json, f"{address.url} runs version {version} and knows the key. Kept in {path}.")
