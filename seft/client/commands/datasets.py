"""`seft datasets`: upload, look at, and check without a service."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from seft.client.errors import Flaw
from seft.client.responses import Dataset, Json, PreviewedRecord
from seft.client.shell import AsJson, Exit, advance, bytes_bar, connected, reporting, show, show_rows

File = Annotated[Path, typer.Argument(exists=True, dir_okay=False)]
Skip = Annotated[float, typer.Option(min=0, max=100, help="Broken lines, in percent, to leave out and not refuse.")]

app = typer.Typer(help="Datasets to repair on.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def upload(path: File, skip: Skip = 0.0, as_json: AsJson = False) -> None:
    """Upload a file of records: JSONL, plain or by gzip or zstd, or Parquet. What was ended early goes on."""
    with connected(as_json) as service:
        with bytes_bar(path.name) as bar:
            dataset = service.upload_dataset(
                path, invalid_sample_skip_percentage=skip, progress=lambda done, total: advance(bar, done, total)
            )
        show(dataset, as_json, _told(dataset))


@app.command("import")
def import_dataset(
    source: Annotated[str, typer.Argument(help="s3://bucket/key, or hf://datasets/owner/name@revision/file.")],
    skip: Skip = 0.0,
    as_json: AsJson = False,
) -> None:
    """Have the service fetch a dataset from a bucket or from the Hugging Face hub."""
    with connected(as_json) as service:
        dataset = service.import_dataset(source, invalid_sample_skip_percentage=skip)
        show(dataset, as_json, _told(dataset))


def _told(dataset: Dataset) -> str:
    skipped = f", {dataset['skipped']} broken lines left out" if dataset["skipped"] else ""
    return f"{dataset['id']}  {dataset['records']} records{skipped}"


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
def delete(dataset_id: str, as_json: AsJson = False) -> None:
    """Delete a dataset that no job needs any more."""
    with connected(as_json) as service:
        show(service.delete_dataset(dataset_id), as_json, f"{dataset_id}  deleted")


@app.command()
def check(path: File, skip: Skip = 0.0, as_json: AsJson = False) -> None:
    """Read a file as the service would, here and without sending it; exit code 1 when it would be refused."""
    with reporting(as_json):
        found, flaws = _checked(path, skip)
    good = f"{path}  {found['format']}  {found['records']} records"
    show(found | {"errors": [asdict(flaw) for flaw in flaws]}, as_json, "\n".join(map(str, flaws)) or good)
    if flaws:
        raise typer.Exit(Exit.FAILED)


@app.command()
def preview(
    dataset_id: str,
    model: Annotated[str, typer.Option(help="As a job names it.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    records: Annotated[int, typer.Option(min=1, max=20, help="How many to show.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Show the first records as a model's tokenizer reads them, what is trained on in green or between [[ and ]]."""
    with connected(as_json) as service:
        found = service.preview_dataset(dataset_id, model, revision=revision, limit=records)
        about = "" if found["exact"] else "about "
        total = f"{about}{found['tokens']:,} tokens, {about}{found['trained_tokens']:,} of them trained on"
        show(found, as_json, "\n\n".join([*map(_shown, found["records"]), total]))


def _shown(record: PreviewedRecord) -> str:
    marks = ("\x1b[32m", "\x1b[0m") if sys.stdout.isatty() else ("[[", "]]")
    text = "".join(part["text"].join(marks if part["trained"] else ("", "")) for part in record["parts"])
    return f"{record['tokens']:,} tokens, {record['trained_tokens']:,} trained on\n{text}{'…' if record['cut'] else ''}"


def _checked(path: Path, skip: float) -> tuple[Json, list[Flaw]]:
    """What a file holds and why it would be refused, by the same lines of code that the service reads it with."""
    from seft.data.survey import survey
    from seft.errors import FileError

    told: Json = {"file": str(path), "format": None, "records": 0, "skipped": 0}
    with path.open("rb") as file:
        try:
            found = survey(file, skip_percentage=skip)
        except FileError as error:
            return told, [Flaw("file", error.rule, error.value, error.way_out)]
    counted = {name: getattr(found, name) for name in ("format", "records", "skipped")}
    flaws = [Flaw(f"{found.unit} {error.line}", error.rule, error.value, error.way_out) for error in found.flaws]
    return told | counted, flaws if found.refused else []
