"""`python -m tests.containers`: a job from POST to download, one whose worker is killed and whose stack goes down, and
one that an empty stack ends, made of a backup.

All must end in the same bytes. The stack is removed at the end, with its volumes.
"""

import tempfile
from pathlib import Path

import typer

from client.http import Client
from tests.containers.drill import WORKER, Drill, in_mid_repair, post, sha256, wait_for


def main() -> None:
    """Build, start, do both jobs, remove."""
    with tempfile.TemporaryDirectory() as folder:
        drill = Drill(Path(folder))
        drill.compose("build", quiet=False)
        try:
            go_through(drill, Path(folder) / "checkpoint")
        except BaseException:
            typer.echo(drill.compose("logs", "--no-color", "--tail=40"))
            raise
        finally:
            drill.compose("down", "--volumes", "--remove-orphans")


def go_through(drill: Drill, target: Path) -> None:
    """What the drill is about."""
    drill.compose("up", "--detach", "--wait")
    typer.echo(drill.compose("ps", "--all", "--format=table {{.Service}}\t{{.Status}}\t{{.Ports}}"))
    client = drill.sign_in()
    dataset = client.upload_dataset(drill.folder / "data.jsonl")["id"]
    undisturbed = sha256(client, first := post(client, dataset))
    client.download(first, target)
    typer.echo(f"downloaded {sorted(path.name for path in target.iterdir())}")

    job_id = post(client, dataset)
    wait_for(lambda: in_mid_repair(client, job_id))
    drill.compose("kill", WORKER)
    typer.echo(f"killed at step {client.job(job_id)['step']}")
    drill.compose("down")
    drill.compose("up", "--detach", "--wait")
    check(client, job_id, undisturbed)

    job_id = post(client, dataset)
    wait_for(lambda: in_mid_repair(client, job_id))
    drill.backup("save")
    drill.compose("down", "--volumes")
    drill.backup("load")
    drill.compose("up", "--detach", "--wait")
    check(client, job_id, undisturbed)


def check(client: Client, job_id: str, wanted: str) -> None:
    """The job ends with these bytes; show its way."""
    assert sha256(client, job_id) == wanted, "the bytes differ"
    ways = "job.", "attempt.", "state.missing"
    told = [event["type"] for event in client.events(job_id) if event["type"].startswith(ways)]
    typer.echo(f"{', '.join(told)}: the same bytes")


if __name__ == "__main__":
    main()
