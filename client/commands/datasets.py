"""`seft datasets`: upload, look at, and check without a service."""

from pathlib import Path
from typing import Annotated

import typer

from client.answers import Json
from client.shell import AsJson, Exit, advance, bytes_bar, connected, reporting, show, show_rows

FLAWS = 20
"""Reading ends at so many broken lines, as it does in the service."""
File = Annotated[Path, typer.Argument(exists=True, dir_okay=False)]

app = typer.Typer(help="Datasets to repair on.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def upload(path: File, as_json: AsJson = False) -> None:
    """Upload a JSONL file with one record a line: text, messages, prompt and completion, or an instruction."""
    with connected(as_json) as service:
        with bytes_bar(path.name) as bar:
            dataset = service.upload_dataset(path, progress=lambda done, total: advance(bar, done, total))
        show(dataset, as_json, f"{dataset['id']}  {dataset['records']} records")


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
def check(path: File, as_json: AsJson = False) -> None:
    """Read a file as the service would, here and without sending it; exit code 1 when a line is broken."""
    with reporting(as_json):
        found = _checked(path)
    lines = [
        f"line {flaw['line']}: {flaw['rule']}; it is {flaw['value']}. {flaw['way_out']}" for flaw in found["errors"]
    ]
    good = f"{path}  {found['format']}  {found['records']} records"
    show(found, as_json, "\n".join(lines) or good)
    if lines:
        raise typer.Exit(Exit.FAILED)


def _checked(path: Path) -> Json:
    """What a file holds, and its first broken lines, by the same lines of code that the service reads it with."""
    from seft.errors import RecordError
    from seft.records import WAY_OUT, Parser, Record

    parse, records, first, distinct = Parser(), 0, None, False
    errors: list[Json] = []
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            records = number
            try:
                record: Record = parse(number, raw)
            except RecordError as error:
                errors.append({"line": error.line, "rule": error.rule, "value": error.value, "way_out": error.way_out})
                if len(errors) == FLAWS:
                    break
                continue
            first = record if first is None else first
            distinct = distinct or record != first
    if not errors and not distinct:
        rule = "two distinct records are needed, to train on and to judge by"
        errors.append({"line": records, "rule": rule, "value": f"a file of {records} records", "way_out": WAY_OUT})
    return {"file": str(path), "format": parse.format, "records": records, "errors": errors}
