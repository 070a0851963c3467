"""`seft jobs`: create, list, follow, control and compare jobs, and download their checkpoints."""

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from seft.client.responses import Event, Job, Push
from seft.client.shell import (
    AsJson,
    Exit,
    Model,
    Set,
    Settings,
    Sparsity,
    Yes,
    assigned,
    bytes_bar,
    confirm,
    connected,
    console,
    require_field,
    show,
    show_rows,
    split,
    uploaded,
)

app = typer.Typer(help="Create and manage repair jobs.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def create(
    model: Model = None,
    dataset: Annotated[str | None, typer.Option(help="Id of an uploaded dataset, or a file to upload.")] = None,
    sparsity: Sparsity = None,
    *,
    retain_dataset: Annotated[
        str | None,
        typer.Option(help="Retain the text of this dataset, not text of the dense model: an id, or a file to upload."),
    ] = None,
    evaluate_dataset: Annotated[
        str | None,
        typer.Option(help="Evaluate on this dataset, not on a part of --dataset: an id, or a file to upload."),
    ] = None,
    push: Annotated[
        str | None, typer.Option(help="Push the result into this repository of the hub.", metavar="OWNER/NAME")
    ] = None,
    file: Settings = None,
    settings: Set = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key with the same request returns the same job.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job until it ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Create a job. Options have priority over --set, and --set over --file."""
    given = {
        "repair.retain_dataset": retain_dataset,
        "evaluate.dataset": evaluate_dataset,
        "output.push.repository": push,
    }
    spec = assigned([*(settings or []), *(f"{name}={text}" for name, text in given.items() if text is not None)], file)
    fields = {"model": model, "dataset": dataset, "sparsity": sparsity}
    spec |= {name: value for name, value in fields.items() if value is not None}
    require_field(spec, "model")
    require_field(spec, "dataset")
    options = {"--dataset": dataset, "--retain-dataset": retain_dataset, "--evaluate-dataset": evaluate_dataset}
    uploads = [_is_file(text, option) for option, text in options.items() if text is not None]
    with connected(as_json, patient=watch or any(uploads)) as service:
        if dataset is not None:
            spec["dataset"] = _dataset_id(service, dataset, "--dataset")
        if retain_dataset is not None:
            dataset_id = _dataset_id(service, retain_dataset, "--retain-dataset")
            spec["repair"] = {"retain": "dataset", **spec["repair"], "retain_dataset": dataset_id}
        if evaluate_dataset is not None:
            spec["evaluate"]["dataset"] = _dataset_id(service, evaluate_dataset, "--evaluate-dataset")
        job = service.create_job(spec, idempotency_key=idempotency_key)
        _tell(job, as_json)
        if watch:
            _follow(service, job["id"], as_json)


@app.command()
def clone(job_id: str, settings: Set = None, as_json: AsJson = False) -> None:
    """Create a copy of a job, with the fields in --set changed. The value null resets a field to its default."""
    overrides = assigned(settings)
    with connected(as_json) as service:
        _tell(service.clone_job(job_id, overrides), as_json)


@app.command("list")
def list_jobs(
    status: Annotated[str | None, typer.Option(help="Only jobs of this status.")] = None,
    model: Annotated[str | None, typer.Option(help="Only jobs of this model.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(help="Only jobs with this metadata.", metavar="NAME=VALUE")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Largest number of jobs. Default: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    pairs = dict(split(pair, "--metadata", "team=x") for pair in metadata or [])
    if len(pairs) < len({*(metadata or [])}):
        rule = "A name can be given once, because a job has one value of it. Leave the other values out."
        raise typer.BadParameter(rule, param_hint="--metadata")
    with connected(as_json) as service:
        jobs = islice(service.jobs(status=status, model=model, metadata=pairs), limit)
        head = ("job", "name", "status", "phase", "progress", "model", "sparsity", "created")
        show_rows(jobs, as_json, head, (_row(job) for job in jobs))


@app.command("show")
def show_job(job_id: str, as_json: AsJson = False) -> None:
    """Print a job as JSON, indented for people, or on one line with --json."""
    with connected(as_json) as service:
        job = service.job(job_id)
        show(job, as_json, json.dumps(job, indent=2))


@app.command()
def watch(job_id: str, as_json: AsJson = False) -> None:
    """Follow a job until it ends. Exit code 1 if it does not succeed."""
    with connected(as_json, patient=True) as service:
        _follow(service, job_id, as_json)


@app.command()
def logs(
    job_id: str,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new events until the job ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the events of a job, oldest first."""
    with connected(as_json, patient=True) as service:
        for event in service.live_events(job_id) if follow else service.events(job_id):
            show(event, as_json, _line(event))


@app.command()
def cancel(job_id: str, as_json: AsJson = False) -> None:
    """Cancel a job and publish nothing."""
    with connected(as_json) as service:
        _tell(service.cancel(job_id), as_json)


@app.command()
def pause(job_id: str, as_json: AsJson = False) -> None:
    """Pause a job until it is resumed."""
    with connected(as_json) as service:
        _tell(service.pause(job_id), as_json)


@app.command()
def resume(job_id: str, as_json: AsJson = False) -> None:
    """Resume a paused job."""
    with connected(as_json) as service:
        _tell(service.resume(job_id), as_json)


@app.command()
def stop(job_id: str, as_json: AsJson = False) -> None:
    """End the training of a job early and publish its current model."""
    with connected(as_json) as service:
        _tell(service.stop(job_id), as_json)


@app.command()
def start(job_id: str, as_json: AsJson = False) -> None:
    """Start a job that was created with auto_start=false."""
    with connected(as_json) as service:
        _tell(service.start(job_id), as_json)


@app.command()
def delete(
    job_id: str,
    *,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete a job that has ended, with its events, metrics and checkpoints."""
    confirm(f"Delete {job_id} with its events, metrics and checkpoints?", yes=yes)
    with connected(as_json) as service:
        job = service.delete_job(job_id)
        show(job, as_json, f"{job['id']}  deleted")


@app.command()
def download(
    job_id: str,
    folder: Annotated[Path, typer.Argument(file_okay=False, help="Folder for the files.")],
    format: Annotated[  # noqa: A002 (the name of the option)
        str | None, typer.Option(help="Only the files of this format, such as gguf_q8_0. All formats if left out.")
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, max=32, help="Number of parallel downloads.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Download the newest checkpoint and check every SHA-256. Resumes an interrupted download."""
    with connected(as_json, patient=True) as service:
        with bytes_bar("checkpoint") as bar:
            paths = service.download(
                job_id,
                folder,
                format=format,
                at_once=at_once,
                progress=bar,
            )
        show({"files": [str(path) for path in paths]}, as_json, "\n".join(map(str, paths)))


@app.command()
def push(
    job_id: str,
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME")],
    *,
    public: Annotated[bool, typer.Option("--public", help="Make a repository public that the push creates.")] = False,
    revision: Annotated[str, typer.Option(help="Branch of the repository, created if missing.")] = "main",
    as_json: AsJson = False,
) -> None:
    """Push the result of a job into a repository of the Hugging Face hub, or push it again."""
    with connected(as_json) as service:
        pushed = service.push(job_id, repository, private=not public, revision=revision)
        show(pushed, as_json, f"{job_id}  {_push_line(pushed)}")


@app.command()
def pushes(job_id: str, as_json: AsJson = False) -> None:
    """List the pushes of a job: repository, status, and the address of the commit or the error."""
    with connected(as_json) as service:
        found = service.pushes(job_id)
        head = ("repository", "branch", "status", "commit or error")
        rows = ((each["repository"], each["revision"], each["status"], _push_result(each)) for each in found)
        show_rows(found, as_json, head, rows)


@app.command()
def compare(job_ids: Annotated[list[str], typer.Argument(metavar="JOB_ID...")], as_json: AsJson = False) -> None:
    """Compare jobs: the fields in which their requests differ, and their results."""
    with connected(as_json) as service:
        jobs = [service.job(job_id) for job_id in job_ids]
        rows = list(_differences(jobs))
        answers = [{"field": name, "values": values} for name, values in rows]
        show_rows(answers, as_json, ("", *job_ids), ([name, *map(_word, values)] for name, values in rows))


def _push_line(push: Push) -> str:
    return "  ".join(filter(None, [push["status"], f"{push['repository']}@{push['revision']}", _push_result(push)]))


def _push_result(push: Push) -> str:
    return push["commit_url"] or (push["error"] or {"message": ""})["message"]


def _is_file(dataset: str, option: str) -> bool:
    """Return whether a dataset is a file. Raises BadParameter with the `option` if it is not an id either."""
    if os.path.isfile(dataset):  # noqa: PTH113 (Path.is_file raises an error for a name that is too long)
        return True
    if not dataset.startswith("file_"):
        rule = f"{dataset!r} is neither a file nor the id of a dataset. Ids begin with file_."
        raise typer.BadParameter(rule, param_hint=option)
    return False


def _dataset_id(service: Any, dataset: str, option: str) -> str:
    """Return the id of a dataset. If `dataset` is a file, it is uploaded first."""
    return str(uploaded(service, Path(dataset))["id"]) if _is_file(dataset, option) else dataset


def _tell(job: Job, as_json: bool) -> None:
    """Print the status of a job and its pending actions, as JSON or text."""
    pending = [word for word in ("pausing", "stopping") if job[word] and not job["finished_at"]]
    show(job, as_json, "  ".join([job["id"], job["status"], *pending]))


def _follow(service: Any, job_id: str, as_json: bool) -> None:
    if as_json:
        for job in service.watch(job_id):
            typer.echo(json.dumps(job))
    else:
        from seft.client.progress import follow

        job = follow(service, job_id, console())
        for line in _scores(job):
            typer.echo(line)
        _tell(job, as_json)
    if job["status"] != "succeeded":
        if error := job["error"]:
            typer.echo(f"{error['code']}: {error['message']}", err=True)
        raise typer.Exit(Exit.FAILED)


def _scores(job: Job) -> Iterator[str]:
    """Yield a line with the perplexities on the held-out text, and one with those on the retained text."""
    for suffix, text in (("", "held-out"), ("_retained", "retained")):
        scores = {name: job["scores"].get(name + suffix) for name in ("dense", "pruned", "repaired")}
        if words := [f"{name} {score:.2f}" for name, score in scores.items() if score is not None]:
            yield f"perplexity on {text} text  {'  '.join(words)}"


def _row(job: Job) -> list[str]:
    spec, progress = job["spec"], f"{job['progress']:.0%}"
    words = [job["id"], _name(job), job["status"], job["phase"] or "", progress, spec["model"], str(spec["sparsity"])]
    return [*words, job["created_at"][:16]]


def _name(job: Job) -> str:
    """Return the name of a job, as the dashboard shows it: its suffix, or else the name of its model."""
    model: str = job["spec"]["model"]
    return job["spec"]["suffix"] or model.rstrip("/").rpartition("/")[2] or model


def _line(event: Event) -> str:
    # The changes of each layer would fill a screen. They are in the output of --json.
    data = "  ".join(f"{name}={_word(value)}" for name, value in event["data"].items() if name != "layers")
    return f"{event['created_at'][:19]}  {event['type']:<16}  attempt {event['attempt']}  {data}".rstrip()


def _differences(jobs: list[Job]) -> Iterator[tuple[str, list[Any]]]:
    """Yield one row per value to compare between jobs.

    The rows are the status, the steps done, each field in which the specs differ, the scores and the sparsity. The
    requested steps are also a row if a job has done fewer, for example because it was stopped.
    """
    yield "status", [job["status"] for job in jobs]
    done = [job["step"] for job in jobs]
    yield "steps done", done
    specs = [_flat(job["spec"]) for job in jobs]
    for name in sorted(set().union(*specs)):
        values = [spec.get(name) for spec in specs]
        if any(value != values[0] for value in values) or (name == "repair.steps" and values != done):
            yield name, values
    for name in ("dense", "pruned", "repaired"):
        yield f"perplexity {name}", [job["scores"].get(name) for job in jobs]
    for name in ("dense_retained", "pruned_retained", "repaired_retained"):
        if any(name in job["scores"] for job in jobs):
            yield f"perplexity {name}", [job["scores"].get(name) for job in jobs]
    measured = [_flat(job["measured"] or {}) for job in jobs]
    for name in sorted(set().union(*measured)):
        yield f"measured {name}", [each.get(name) for each in measured]


def _flat(spec: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(spec, dict):
        return {prefix.removesuffix("."): spec}
    return {name: value for key, inner in spec.items() for name, value in _flat(inner, f"{prefix}{key}.").items()}


def _word(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
