"""The command `seft`: jobs and datasets from a shell. It adds nothing to `client.http` but words and a bar."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from client.answers import Job, Json
from client.errors import ClientError
from client.http import Client
from client.progress import follow

app = typer.Typer(help="Make language models sparse, and repair them.", no_args_is_help=True, add_completion=False)
jobs = typer.Typer(help="Repair jobs.", no_args_is_help=True)
datasets = typer.Typer(help="Datasets to repair on.", no_args_is_help=True)
keys = typer.Typer(help="API keys of your tenant, for a key of scope admin.", no_args_is_help=True)
app.add_typer(jobs, name="jobs")
app.add_typer(keys, name="keys")
app.add_typer(datasets, name="datasets")

AsJson = Annotated[bool, typer.Option("--json", help="Print the API's answer.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Any other field, as repair.steps=100.", metavar="KEY=VALUE")
]


@contextmanager
def client() -> Iterator[Client]:
    """A client of SEFT_URL; what goes wrong is one clear message and exit code 2."""
    try:
        with Client() as connected:
            yield connected
    except ClientError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error


def show(answer: Mapping[str, object], as_json: bool, line: str) -> None:
    """Print an answer for a program or for a person."""
    typer.echo(json.dumps(answer) if as_json else line)


def tell(job: Job, as_json: bool) -> None:
    """Print where a job stands."""
    coming = [word for word in ("pausing", "stopping") if job[word]]
    show(job, as_json, "  ".join([job["id"], job["status"], *coming]))


@datasets.command()
def upload(path: Annotated[Path, typer.Argument(exists=True, dir_okay=False)], as_json: AsJson = False) -> None:
    """Upload a JSONL file with one record a line: text, messages, prompt and completion, or an instruction."""
    with client() as service:
        dataset = service.upload_dataset(path)
        show(dataset, as_json, f"{dataset['id']}  {dataset['records']} records")


@jobs.command()
def create(
    model: Annotated[str, typer.Option(help="A hub id, or a name under the service's model roots.")],
    dataset: Annotated[str, typer.Option(help="Id of an uploaded dataset.")],
    sparsity: Annotated[float, typer.Option(help="Share of zeros, such as 0.6.")],
    settings: Set = None,
    as_json: AsJson = False,
) -> None:
    """Create a job."""
    spec: Json = {"model": model, "dataset": dataset, "sparsity": sparsity}
    for setting in settings or []:
        assign(spec, setting)
    with client() as service:
        tell(service.create_job(spec), as_json)


@jobs.command()
def clone(job_id: str, settings: Set = None, as_json: AsJson = False) -> None:
    """Create a job like another one, but for the fields that --set names; null stands for the default."""
    overrides: Json = {}
    for setting in settings or []:
        assign(overrides, setting)
    with client() as service:
        job = service.clone_job(job_id, overrides)
        show(job, as_json, f"{job['id']}  {job['status']}")


@jobs.command("list")
def list_jobs(
    status: Annotated[str | None, typer.Option(help="Only jobs of this status.")] = None,
    model: Annotated[str | None, typer.Option(help="Only jobs of this model.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(help="Only jobs with this in their metadata.", metavar="NAME=VALUE")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    pairs = dict(split(pair, "--metadata", "team=x") for pair in metadata or [])
    with client() as service:
        found = service.jobs(status=status, model=model, metadata=pairs)
        if as_json:
            typer.echo(json.dumps(list(found)))
            return
        table = Table(
            Column("job", no_wrap=True, min_width=30), "status", "phase", "progress", "model", "sparsity", box=None
        )
        for job in found:
            spec = job["spec"]
            row = (job["id"], job["status"], job["phase"] or "", f"{job['progress']:.0%}", spec["model"])
            table.add_row(*row, str(spec["sparsity"]))
        Console().print(table)


@jobs.command("show")
def show_job(job_id: str) -> None:
    """Print a job as the API tells it."""
    with client() as service:
        typer.echo(json.dumps(service.job(job_id), indent=2))


@jobs.command()
def watch(job_id: str) -> None:
    """Follow a job to its end; exit code 1 when it does not succeed."""
    with client() as service:
        job = follow(service, job_id, Console())
        typer.echo(f"{job['id']}  {job['status']}")
        if job["status"] != "succeeded":
            typer.echo(json.dumps(job["error"]), err=True)
            raise typer.Exit(1)


@jobs.command()
def cancel(job_id: str, as_json: AsJson = False) -> None:
    """End a job and keep nothing of it."""
    with client() as service:
        tell(service.cancel(job_id), as_json)


@jobs.command()
def pause(job_id: str, as_json: AsJson = False) -> None:
    """Keep a job from running until it is resumed."""
    with client() as service:
        tell(service.pause(job_id), as_json)


@jobs.command()
def resume(job_id: str, as_json: AsJson = False) -> None:
    """Let a paused job go on."""
    with client() as service:
        tell(service.resume(job_id), as_json)


@jobs.command()
def stop(job_id: str, as_json: AsJson = False) -> None:
    """End a job's training early and publish what there is."""
    with client() as service:
        tell(service.stop(job_id), as_json)


@jobs.command()
def start(job_id: str, as_json: AsJson = False) -> None:
    """Start a job that was made with auto_start=false."""
    with client() as service:
        tell(service.start(job_id), as_json)


@jobs.command()
def download(job_id: str, folder: Path) -> None:
    """Fetch the newest checkpoint and check every file's SHA-256."""
    with client() as service:
        for path in service.download(job_id, folder):
            typer.echo(path)


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="Who or what will use it.")],
    scope: Annotated[str, typer.Option(help="read, write or admin.")] = "write",
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, this once."""
    with client() as service:
        key = service.create_key(name, scope)
        show(key, as_json, key["secret"])


@keys.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List keys, newest first; none of them shows its secret."""
    with client() as service:
        if as_json:
            typer.echo(json.dumps(list(service.api_keys())))
            return
        table = Table(Column("key", no_wrap=True, min_width=30), "name", "scope", "last used", "revoked", box=None)
        for key in service.api_keys():
            table.add_row(key["id"], key["name"], key["scope"], key["last_used_at"] or "never", key["revoked_at"] or "")
        Console().print(table)


@keys.command()
def revoke(key_id: str, as_json: AsJson = False) -> None:
    """End a key at once and for ever."""
    with client() as service:
        key = service.revoke_key(key_id)
        show(key, as_json, f"{key['id']}  revoked {key['revoked_at']}")


@app.command()
def audit(as_json: AsJson = False) -> None:
    """Print every change made with one of your tenant's keys, newest first."""
    with client() as service:
        for entry in service.audit():
            line = "  ".join([entry["created_at"], entry["key_id"], entry["action"], entry["target"]])
            show(entry, as_json, line)


def split(pair: str, option: str, example: str) -> tuple[str, str]:
    """The two sides of NAME=VALUE."""
    name, equals, value = pair.partition("=")
    if not equals:
        raise typer.BadParameter(f"{pair!r} has no '='. Write it as {example}.", param_hint=option)
    return name, value


def assign(spec: Json, setting: str) -> None:
    """Put `repair.steps=100` into the spec: the value is JSON, or else a word."""
    path, text = split(setting, "--set", "repair.steps=100")
    *parents, name = path.split(".")
    for parent in parents:
        spec = spec.setdefault(parent, {})
    try:
        value: Any = json.loads(text)
    except json.JSONDecodeError:
        value = text
    spec[name] = value
