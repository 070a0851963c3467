"""`seft estimate`: what a job would take, before there is one."""

import json
from collections.abc import Iterator
from typing import Annotated

import typer

from seft.client.responses import Estimate, Fit
from seft.client.shell import AsJson, Set, assigned, connected, show_rows

GIGABYTE = 1e9


def estimate(
    model: Annotated[str, typer.Option(help="A hub id, a name under the service's model roots, or a job's id.")],
    sparsity: Annotated[
        float | None, typer.Option(help="Share of zeros, such as 0.6; an N:M pattern has its own.")
    ] = None,
    settings: Set = None,
    as_json: AsJson = False,
) -> None:
    """Tell a job's memory, time and size, and which workers it fits; takes what `jobs create` takes."""
    spec = {"model": model} | ({} if sparsity is None else {"sparsity": sparsity}) | assigned(settings)
    with connected(as_json) as service:
        found = service.estimate_job(spec)
        if as_json:
            typer.echo(json.dumps(found))
        else:
            show_rows((), as_json, ("", "", ""), _rows(found))


def _rows(found: Estimate) -> Iterator[list[str]]:
    yield ["parameters", f"{found['parameters']:,}", found["architecture"]]
    yield ["made sparse", f"{found['target_weights']:,}", ""]
    yield ["steps", f"{found['steps']:,}", f"{found['tokens']['training']:,} tokens"]
    yield ["checkpoint", _bytes(found["checkpoint_bytes"]), ""]
    for held in found["memory"]:
        apart = f"or {_bytes(held['device_bytes'])} on a device and {_bytes(held['host_bytes'])} on its host"
        yield [f"memory {held['phase']}", _bytes(held["together_bytes"]), apart]
    for worker in found["workers"]:
        yield [worker["name"], "fits" if worker["fits"] else "does not fit", _why(worker)]


def _why(worker: Fit) -> str:
    needs = f"{worker['phase']} takes {_bytes(worker['needed_bytes'])} of {_bytes(worker['memory_bytes'])}"
    words = [f"{worker['device']} {worker['device_name']}".strip(), needs]
    if worker["seconds"] is not None:
        words.append(f"about {worker['seconds']:,.0f} s")
    if not worker["fits"]:
        words.append("no change would help" if worker["change"] is None else f"with {_settings(worker['change'])}")
    return "; ".join(words)


def _settings(change: dict[str, object], prefix: str = "") -> str:
    """A change as `--set` takes it."""
    return " ".join(
        _settings(value, f"{prefix}{name}.") if isinstance(value, dict) else f"--set {prefix}{name}={value}"
        for name, value in change.items()
    )


def _bytes(count: int) -> str:
    return f"{count / GIGABYTE:.2f} GB"
