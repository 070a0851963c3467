"""`seft estimate`: memory, time and size of a job before you create it."""

import json
import shlex
from collections.abc import Iterator

import typer

from seft.client.responses import Estimate, Fit
from seft.client.shell import AsJson, Model, Set, Settings, Sparsity, assigned, connected, require_field, show_rows
from seft.report import about

GIGABYTE = 1e9
BASES = {
    "earlier_jobs": "from earlier jobs",
    "calibration": "roughly, from a short calibration of the device",
}
"""What an estimated time is based on, in words."""


def estimate(
    model: Model = None,
    sparsity: Sparsity = None,
    file: Settings = None,
    settings: Set = None,
    as_json: AsJson = False,
) -> None:
    """Estimate the memory, time and size of a job, and the workers it fits.

    Give any other field of the job with --set.
    """
    given = {"model": model, "sparsity": sparsity}
    spec = assigned(settings, file) | {name: value for name, value in given.items() if value is not None}
    require_field(spec, "model")
    with connected(as_json) as service:
        answer = service.estimate_job(spec)
        if as_json:
            typer.echo(json.dumps(answer))
        else:
            show_rows((), as_json, ("", "", ""), _rows(answer))


def _rows(estimate: Estimate) -> Iterator[list[str]]:
    yield ["parameters", f"{estimate['parameters']:,}", estimate["architecture"]]
    yield ["made sparse", f"{estimate['target_weights']:,}", ""]
    yield ["steps", f"{estimate['steps']:,}", f"{estimate['tokens']['training']:,} tokens"]
    yield ["checkpoint", _bytes(estimate["checkpoint_bytes"]), ""]
    yield ["disk of the worker", _bytes(estimate["disk_bytes"]), ""]
    for stage in estimate["memory"]:
        split = f"{_bytes(stage['device_bytes'])} on the GPU, {_bytes(stage['host_bytes'])} on its host"
        yield [f"memory {stage['phase']}", f"{_bytes(stage['together_bytes'])} on a CPU worker", f"or {split}"]
    for worker in estimate["workers"]:
        yield [worker["name"], "fits" if worker["fits"] else "does not fit", _why(worker)]


def _why(worker: Fit) -> str:
    needs = f"{worker['phase']} needs {_bytes(worker['needed_bytes'])} of {_bytes(worker['memory_bytes'])}"
    words = [f"{worker['device']} {worker['device_name']}".strip(), f"{needs} in {worker['dtype']}"]
    if worker["seconds"] is None:
        words.append("time not known yet")
    else:
        words.append(f"{about(worker['seconds'])}, {BASES[str(worker['seconds_from'])]}")
    if not worker["fits"]:
        change = worker["change"]
        words.append("no change makes it fit" if change is None else f"fits with {as_options(change)}")
    return "; ".join(words)


def as_options(change: dict[str, object], prefix: str = "") -> str:
    """Return a change of a job's settings as `--set` options for a shell.

    A value is text or JSON, as `assigned` reads it.
    """
    options = list[str]()
    for name, value in change.items():
        if isinstance(value, dict):
            options.append(as_options(value, f"{prefix}{name}."))
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            options.append(f"--set {shlex.quote(f'{prefix}{name}={text}')}")
    return " ".join(options)


def _bytes(count: int) -> str:
    return f"{count / GIGABYTE:.2f} GB"
