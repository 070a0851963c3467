"""`python -m api` serves. `keys create` behind it prints a new key, `schema` the OpenAPI; `bucket` is for backups."""

import json
from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from api.app import routes
from api.protocol import PatientProtocol
from core.access import keys
from core.access.keys import Scope
from core.infra import bucket_backup, logging
from core.infra.database import make_engine, make_sessions
from core.infra.storage import Storage
from core.settings import Settings

GRACE_SECONDS = 5
"""Streams of events never end by themselves."""
HUNG_SECONDS = 15
"""One of several processes that says nothing for so long is replaced."""

cli = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
keys_cli = typer.Typer(help="API keys.")
cli.add_typer(keys_cli, name="keys")
bucket_cli = typer.Typer(help="The bucket as a folder.")
cli.add_typer(bucket_cli, name="bucket")
Folder = Annotated[Path, typer.Argument(help="Where the objects lie, as files under their keys.")]


@cli.callback(invoke_without_command=True)
def serve(context: typer.Context) -> None:
    """Serve the API, as the SEFT_ environment variables say."""
    if context.invoked_subcommand is not None:
        return
    settings = Settings()
    if settings.api_processes > 1:
        logging.configure(settings)  # of the supervisor
    uvicorn.run(
        "api.process:serving",
        factory=True,
        workers=settings.api_processes,
        host=settings.api_host,
        port=settings.api_port,
        log_config=None,
        access_log=False,
        server_header=False,
        http=PatientProtocol,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_worker_healthcheck=HUNG_SECONDS,
    )


@keys_cli.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="Who or what will use it.")],
    tenant: Annotated[str, typer.Option(help="Whose rows it opens.")] = "default",
    scope: Annotated[Scope, typer.Option(help="What it may do.")] = Scope.ADMIN,
) -> None:
    """Print a new key, of scope admin unless told otherwise. It is shown this once and kept nowhere."""
    engine = make_engine(Settings())
    with make_sessions(engine).begin() as session:
        _, secret = keys.issue(session, tenant, name, scope)
    engine.dispose()
    typer.echo(secret)


@bucket_cli.command("save")
def save_bucket(folder: Folder) -> None:
    """Fetch the objects that the folder lacks."""
    typer.echo(f"{bucket_backup.save(Storage(Settings()), folder)} objects fetched")


@bucket_cli.command("load")
def load_bucket(folder: Folder) -> None:
    """Put all files of the folder into the bucket."""
    typer.echo(f"{bucket_backup.load(Storage(Settings()), folder)} objects put")


@cli.command()
def schema() -> None:
    """Print the OpenAPI document, as `docs/openapi.json` holds it."""
    typer.echo(json.dumps(routes().openapi(), indent=2, ensure_ascii=False, sort_keys=True))


if __name__ == "__main__":
    cli()
