"""`python -m api` runs the server.

Its commands create API keys, encrypt hub tokens with a new key, copy the bucket, make the service the owner of the
bucket, and print the OpenAPI document.
"""

import json
from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from api.protocol import HeadTimeoutProtocol
from core import bucket_owner
from core.access import hub_tokens, keys
from core.access.encryption import Encryption
from core.access.keys import Scope
from core.infra import bucket_backup, logging
from core.infra.database import one_session
from core.infra.storage import Storage
from core.settings import DatabaseSettings, Settings, read

SHUTDOWN_SECONDS = 5
"""Seconds that open requests get to finish at shutdown. Event streams are cut off then, because they do not end."""
HEALTHCHECK_SECONDS = 15
"""Seconds without a response after which the supervisor of the API processes replaces a process."""

cli = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
keys_cli = typer.Typer(help="Manage API keys.")
cli.add_typer(keys_cli, name="keys")
bucket_cli = typer.Typer(help="Copy the bucket to and from a folder, or make this service its owner.")
cli.add_typer(bucket_cli, name="bucket")
hub_tokens_cli = typer.Typer(help="Encrypt tenants' tokens for the model hub.")
cli.add_typer(hub_tokens_cli, name="hub-tokens")
Folder = Annotated[
    Path, typer.Argument(help="Folder with the objects: one file per object. Its path is the object's key.")
]


@cli.callback(invoke_without_command=True)
def serve(context: typer.Context) -> None:
    """Run the API server. The SEFT_ environment variables configure it."""
    if context.invoked_subcommand is not None:
        return
    settings = read(Settings)
    if settings.api_processes > 1:
        logging.configure(settings)  # for the supervisor's own log
    uvicorn.run(
        "api.process:make_process_app",
        factory=True,
        workers=settings.api_processes,
        host=settings.api_host,
        port=settings.api_port,
        log_config=None,
        access_log=False,
        server_header=False,
        http=HeadTimeoutProtocol,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        timeout_worker_healthcheck=HEALTHCHECK_SECONDS,
    )


@keys_cli.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="Who or what will use the key.")],
    tenant: Annotated[str, typer.Option(help="Tenant that the key belongs to.")] = "default",
    scope: Annotated[Scope, typer.Option(help="What the key may do.")] = Scope.ADMIN,
) -> None:
    """Create an API key and print it. The key is shown only once; only its hash is stored."""
    with one_session(read(DatabaseSettings)) as session:
        _, secret = keys.issue(session, tenant, name, scope)
    typer.echo(secret)


@hub_tokens_cli.command("encrypt")
def encrypt_hub_tokens() -> None:
    """Encrypt all stored tokens with SEFT_SECRET_KEY. SEFT_OLD_SECRET_KEYS must contain the keys used so far."""
    settings = read(Settings)
    with one_session(settings) as session:
        done, unreadable = hub_tokens.encrypt_again(session, Encryption(settings))
    typer.echo(f"{done} hub tokens encrypted")
    if unreadable:
        names = ", ".join(unreadable)
        typer.echo(
            f"The hub tokens of these tenants cannot be decrypted: {names}. Add the key that encrypted them to"
            " SEFT_OLD_SECRET_KEYS and run the command again, or ask the tenants to store their tokens again.",
            err=True,
        )
        raise typer.Exit(1)


@bucket_cli.command("save")
def save_bucket(folder: Folder) -> None:
    """Download the objects of the bucket that are not in the folder yet."""
    typer.echo(f"{bucket_backup.save(Storage(read(Settings)), folder)} objects downloaded")


@bucket_cli.command("load")
def load_bucket(folder: Folder) -> None:
    """Upload all files of the folder to the bucket."""
    typer.echo(f"{bucket_backup.load(Storage(read(Settings)), folder)} objects uploaded")


@bucket_cli.command("claim")
def claim_bucket() -> None:
    """Make this service the owner of the bucket. Use it only if the former owner does not exist any more."""
    settings = read(Settings)
    storage = Storage(settings)
    storage.ping()
    with one_session(settings) as session:
        service = bucket_owner.service_id(session)
    former = bucket_owner.owner(storage)
    bucket_owner.claim(storage, service)
    typer.echo(f"{settings.s3_bucket} belongs to this service now ({service}). Its former owner: {former or 'none'}.")


@cli.command()
def schema() -> None:
    """Print the OpenAPI document. `docs/openapi.json` is a copy of the output."""
    from api.app import routes  # the other commands do not need the application, whose import takes a second

    typer.echo(json.dumps(routes().openapi(), indent=2, ensure_ascii=False, sort_keys=True))


if __name__ == "__main__":
    cli()
