"""`python -m tests.containers`: a job from POST to download, one whose worker is killed and whose stack goes down, and
one that an empty stack ends, made of a backup.

All must end in the same bytes. The stack is removed at the end, with its volumes.
"""

import typer

from tests.containers.drill import WORKER, Drill, begin, check, post, sha256, stack


def main() -> None:
    """Build, start, do the jobs, remove."""
    with stack() as drill:
        drill.compose("build", quiet=False)
        go_through(drill)


def go_through(drill: Drill) -> None:
    """What the drill is about."""
    target = drill.folder / "checkpoint"
    drill.compose("up", "--detach", "--wait")
    typer.echo(drill.compose("ps", "--all", "--format=table {{.Service}}\t{{.Status}}\t{{.Ports}}"))
    client = drill.sign_in()
    dataset = client.upload_dataset(drill.folder / "data.jsonl")["id"]
    undisturbed = sha256(client, first := post(client, dataset))
    client.download(first, target)
    typer.echo(f"downloaded {sorted(path.name for path in target.iterdir())}")

    job_id = begin(client, dataset)
    drill.compose("kill", WORKER)
    drill.compose("down")
    drill.compose("up", "--detach", "--wait")
    check(client, job_id, undisturbed)

    job_id = begin(client, dataset)
    drill.backup("save")
    drill.compose("down", "--volumes")
    drill.backup("load")
    drill.compose("up", "--detach", "--wait")
    check(client, job_id, undisturbed)


if __name__ == "__main__":
    main()
