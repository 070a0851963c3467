"""`seft datasets`: upload, look at, and check without a service."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from client.answers import Json
from client.errors import Flaw
from client.shell import AsJson, Exit, advance, bytes_bar, connected, reporting, show, show_rows

File = Annotated[Path, typer.Argument(exists=True, dir_okay=False)]
Skip = Annotated[float, typer.Option(min=0, max=100, help="Broken lines, in percent, to leave out and not refuse.")]

app = typer.Typer(help="Datasets to repair on.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def upload(path: File, skip: Skip = 0.0, as_json: AsJson = False) -> None:
    """Upload a file of records: JSONL, plain or by gzip or zstd, or Parquet."""
    with connected(as_json) as service:
        with bytes_bar(path.name) as bar:
            dataset = service.upload_dataset(
                path, invalid_sample_skip_percentage=skip, progress=lambda done, total: advance(bar, done, total)
            )
        skipped = f", {dataset['skipped']} broken lines left out" if dataset["skipped"] else ""
        show(dataset, as_json, f"{dataset['id']}  {dataset['records']} records{skipped}")


@app.command("list")
def list_datasets(as_json: AsJson = False) -> None:
    """List datasets, newest first."""
    with connected(as_json) as service:
        found = service.datasets()
        rows = (
            [one["id"], one["name"], one["format"], f"{one['records']:,}", f"{one['bytes']:,}", one["created_at"][:16]]
            for one in found
        )
        show_rows(found, as_json, ("dataset", "name", "format", "records", "bytes", "created"), rows)


@app.command()
def check(path: File, skip: Skip = 0.0, as_json: AsJson = False) -> None:
    """Read a file as the service would, here and without sending it; exit code 1 when it would be refused."""
    with reporting(as_json):
        found, flaws = _checked(path, skip)
    good = f"{path}  {found['format']}  {found['records']} records"
    show(found | {"errors": [asdict(flaw) for flaw in flaws]}, as_json, "\n".join(map(str, flaws)) or good)
    if flaws:
        raise typer.Exit(Exit.FAILED)


def _checked(path: Path, skip: float) -> tuple[Json, list[Flaw]]:
    """What a file holds and why it would be refused, by the same lines of code that the service reads it with."""
    from seft.errors import FileError
    from seft.survey import survey

    told: Json = {"file": str(path), "format": None, "records": 0, "skipped": 0}
    with path.open("rb") as file:
        try:
            found = survey(file, skip_percentage=skip)
        except FileError as error:
            return told, [Flaw("file", error.rule, error.value, error.way_out)]
    counted = {name: getattr(found, name) for name in ("format", "records", "skipped")}
    flaws = [Flaw(f"{found.unit} {error.line}", error.rule, error.value, error.way_out) for error in found.flaws]
    return told | counted, flaws if found.refused else []
