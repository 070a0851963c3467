"""`python -m tests.containers`: run three jobs on the Docker stack, which must end in the same bytes.

Before that, it checks what the worker, the host and a training process can reach. The first job is undisturbed. The
worker of the second is killed, and the stack restarted. The third is continued by a stack that was restored from a
backup. The stack and its volumes are removed at the end.
"""

import typer

from tests.containers import boundary
from tests.containers.drill import WORKER, Drill, begin, check, post, sha256, stack


def main() -> None:
    """Build the images, start the stack, run the jobs, remove the stack."""
    with stack() as drill:
        drill.compose("build", quiet=False)
        run_jobs(drill)


def run_jobs(drill: Drill) -> None:
    """Run the three jobs and compare their checkpoints."""
    target = drill.folder / "checkpoint"
    drill.compose("up", "--detach", "--wait")
    typer.echo(drill.compose("ps", "--all", "--format=table {{.Service}}\t{{.Status}}\t{{.Ports}}"))
    client = drill.sign_in()
    dataset = client.upload_dataset(drill.folder / "data.jsonl")["id"]
    boundary.check_kernels(drill)
    boundary.check_worker(drill)
    boundary.check_host(drill)
    boundary.check_training(drill, client, dataset)

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
