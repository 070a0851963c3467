"""`python -m tests.containers.upgrade OLD NEW`: from one version to the next over its migration, and back, in mid-job.

OLD and NEW are what SEFT_VERSION says of images that are there, each made in a checkout of its own:
`SEFT_VERSION=OLD docker compose --profile cpu build`. NEW has one migration more, and the same training: all jobs must
end in the same bytes.
"""

import typer

from tests.containers.drill import WORKER, Drill, begin, check, post, sha256, stack


def main(old: str, new: str) -> None:
    """The new migration and API beside the old worker; back; all of it new at once; back."""
    with stack() as drill:
        use(drill, old)
        drill.compose("up", "--detach", "--wait")
        client = drill.sign_in()
        dataset = client.upload_dataset(drill.folder / "data.jsonl")["id"]
        undisturbed = sha256(client, post(client, dataset))

        job_id = begin(client, dataset)
        use(drill, new)
        drill.compose("run", "--rm", "--no-deps", "migrate")
        drill.compose("up", "--detach", "--wait", "--no-deps", "api")
        check(client, job_id, undisturbed)
        go_back(drill, old)

        job_id = begin(client, dataset)
        use(drill, new)
        drill.compose("up", "--detach", "--wait")
        check(client, job_id, undisturbed)

        job_id = begin(client, dataset)
        go_back(drill, old)
        check(client, job_id, undisturbed)


def use(drill: Drill, version: str) -> None:
    """Whose images the next commands take."""
    drill.environment["SEFT_VERSION"] = version


def go_back(drill: Drill, old: str) -> None:
    """As the manual says: the newer software takes its last migration back, then the older one starts."""
    drill.compose("stop", "api", WORKER)
    drill.compose("run", "--rm", "--no-deps", "migrate", "python", "-m", "migrations", "back")
    use(drill, old)
    drill.compose("up", "--detach", "--wait")


if __name__ == "__main__":
    typer.run(main)
