"""`seft workers`: the workers of the service."""

from typing import Annotated

import typer

from seft.client.responses import Worker
from seft.client.shell import AsJson, connected, show_rows


def workers(
    all_: Annotated[bool, typer.Option("--all", help="Also list workers that stopped within the last day.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the workers that are alive, and the job that each one runs."""
    with connected(as_json) as service:
        answer = service.workers()
        shown = [worker for worker in answer if worker["alive"] or all_]
        show_rows(shown, as_json, ("worker", "state", "device", "memory", "job", "seen"), map(_row, shown))
        if left_out := len(answer) - len(shown):
            typer.echo(f"{left_out} not responding; --all lists them too.", err=True)


def _row(worker: Worker) -> list[str]:
    state = "working" if worker["busy"] else "idle"
    several = f"{worker['devices']} x " if worker["devices"] > 1 else ""
    return [
        worker["name"],
        state if worker["alive"] else "not responding",
        f"{several}{worker['device']} {worker['device_name']}",
        f"{worker['memory'] / 1e9:.1f} GB",
        worker["job_id"] or ("of another tenant" if worker["busy"] else ""),
        worker["seen_at"][:19],
    ]
