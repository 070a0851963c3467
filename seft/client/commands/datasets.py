"""`seft datasets`: upload, import, list and preview datasets, and check files without a service."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from seft.client.errors import Flaw
from seft.client.responses import Dataset, Json, PreviewedRecord
from seft.client.shell import (
    AsJson,
    Exit,
    Yes,
    bytes_bar,
    confirm,
    connected,
    finite,
    reporting,
    show,
    show_rows,
    uploaded,
)

File = Annotated[Path, typer.Argument(exists=True, dir_okay=False)]
Skip = Annotated[
    float,
    typer.Option(min=0, max=100, help="Percentage of invalid lines to skip instead of rejecting.", callback=finite),
]

app = typer.Typer(help="Upload, list and check datasets.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def upload(path: File, skip: Skip = 0.0, as_json: AsJson = False) -> None:
    """Upload a file of records: JSONL (plain, gzip or zstd) or Parquet. Resumes an interrupted upload."""
    with connected(as_json, patient=True) as service:
        dataset = uploaded(service, path, skip)
        show(dataset, as_json, _summary(dataset))


@app.command("import")
def import_dataset(
    source: Annotated[
        str,
        typer.Argument(help="s3://bucket/key, hf://datasets/owner/name@revision/file, or the id of a started import."),
    ],
    name: Annotated[str | None, typer.Option(help="Name of the dataset. Default: the name of the file.")] = None,
    skip: Skip = 0.0,
    as_json: AsJson = False,
) -> None:
    """Let the service fetch a dataset from a bucket or from the Hugging Face hub. Or wait for a started import."""
    started = source.startswith("imp_")
    if started and (name or skip):
        rule = f"must be left out, because {source} has started. Without them the command waits for it."
        raise typer.BadParameter(rule, param_hint="--name and --skip")
    with connected(as_json, patient=True) as service:
        import_id = source
        if not started:
            import_id = service.start_import(source, name=name, invalid_sample_skip_percentage=skip)["id"]
            typer.echo(f"{import_id} started. To wait for it again: seft datasets import {import_id}", err=True)
        dataset = service.finish_import(import_id)
        show(dataset, as_json, _summary(dataset))


def _summary(dataset: Dataset) -> str:
    skipped = f", {dataset['skipped']} invalid lines skipped" if dataset["skipped"] else ""
    return f"{dataset['id']}  {dataset['records']} records{skipped}"


@app.command("list")
def list_datasets(as_json: AsJson = False) -> None:
    """List datasets, newest first."""
    with connected(as_json) as service:
        datasets = service.datasets()
        rows = (
            [one["id"], one["name"], one["format"], f"{one['records']:,}", f"{one['bytes']:,}", one["created_at"][:16]]
            for one in datasets
        )
        show_rows(datasets, as_json, ("dataset", "name", "format", "records", "bytes", "created"), rows)


@app.command()
def download(
    dataset_id: str,
    path: Annotated[Path, typer.Argument(dir_okay=False, help="File to write.")],
    at_once: Annotated[int, typer.Option(min=1, max=32, help="Number of parallel downloads.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Download the records of a dataset as JSONL and check the SHA-256. Resumes an interrupted download."""
    with connected(as_json, patient=True) as service:
        with bytes_bar(path.name) as bar:
            service.download_dataset(dataset_id, path, at_once=at_once, progress=bar)
        show({"file": str(path)}, as_json, str(path))


@app.command()
def delete(dataset_id: str, *, yes: Yes = False, as_json: AsJson = False) -> None:
    """Delete a dataset that no unfinished job needs."""
    confirm(f"Delete {dataset_id}?", yes=yes)
    with connected(as_json) as service:
        dataset = service.delete_dataset(dataset_id)
        show(dataset, as_json, f"{dataset['id']}  deleted")


@app.command()
def check(path: File, skip: Skip = 0.0, as_json: AsJson = False) -> None:
    """Check a file as the service would, without sending it. Exit code 1 if the service would reject it."""
    with reporting(as_json):
        counts, flaws = _validate(path, skip)
    summary = f"{path}  {counts['format']}  {counts['records']} records"
    show(counts | {"errors": [asdict(flaw) for flaw in flaws]}, as_json, "\n".join(map(str, flaws)) or summary)
    if flaws:
        raise typer.Exit(Exit.FAILED)


@app.command()
def preview(
    dataset_id: str,
    model: Annotated[str, typer.Option(help="The model, as a job names it.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    records: Annotated[int, typer.Option(min=1, max=20, help="Number of records to show.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Show the first records as a model's tokenizer reads them.

    Text that is trained on is green, or between `[[` and `]]`.
    """
    with connected(as_json) as service:
        answer = service.preview_dataset(dataset_id, model, revision=revision, limit=records)
        about = "" if answer["exact"] else "about "
        total = f"{about}{answer['tokens']:,} tokens, {about}{answer['trained_tokens']:,} of them trained on"
        show(answer, as_json, "\n\n".join([*map(_text, answer["records"]), total]))


def _text(record: PreviewedRecord) -> str:
    marks = ("\x1b[32m", "\x1b[0m") if sys.stdout.isatty() else ("[[", "]]")
    text = "".join(part["text"].join(marks if part["trained"] else ("", "")) for part in record["parts"])
    return f"{record['tokens']:,} tokens, {record['trained_tokens']:,} trained on\n{text}{'…' if record['cut'] else ''}"


def _validate(path: Path, skip: float) -> tuple[Json, list[Flaw]]:
    """Return the counts of a file, and the reasons why the service would reject it. The service runs the same code."""
    from seft.data.validation import validate
    from seft.errors import FileError

    counts: Json = {"file": str(path), "format": None, "records": 0, "skipped": 0}
    with path.open("rb") as file:
        try:
            result = validate(file, skip_percentage=skip)
        except FileError as error:
            return counts, [Flaw("file", error.rule, error.value, error.way_out)]
    counts |= {name: getattr(result, name) for name in ("format", "records", "skipped")}
    flaws = [Flaw(f"{result.unit} {error.line}", error.rule, error.value, error.way_out) for error in result.flaws]
    return counts, flaws if result.rejected else []
