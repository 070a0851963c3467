"""`python -m tests.containers.upgrade OLD NEW REVISION`: upgrade a stack during a job, and downgrade it again.

OLD and NEW are values of SEFT_VERSION of existing images. Build each in its own checkout with
`SEFT_VERSION=OLD docker compose --profile cpu build`. Both must have the same training code, so that all jobs end in
the same bytes. REVISION is the newest migration of OLD.
"""

import typer

from tests.containers.drill import WORKER, Drill, begin, check, post, sha256, stack


def main(old: str, new: str, revision: str) -> None:
    """Upgrade only the database and the API, downgrade, upgrade everything at once, and downgrade again."""
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
        go_back(drill, old, revision)

        job_id = begin(client, dataset)
        use(drill, new)
        drill.compose("up", "--detach", "--wait")
        check(client, job_id, undisturbed)

        job_id = begin(client, dataset)
        go_back(drill, old, revision)
        check(client, job_id, undisturbed)


def use(drill: Drill, version: str) -> None:
    """Select the version of the images for the next commands."""
    drill.environment["SEFT_VERSION"] = version


def go_back(drill: Drill, old: str, revision: str) -> None:
    """Downgrade as the manual says: undo migrations with the newer software, then start the older one."""
    drill.compose("stop", "api", WORKER)
    drill.compose("run", "--rm", "--no-deps", "migrate", "python", "-m", "migrations", "back", revision)
    use(drill, old)
    drill.compose("up", "--detach", "--wait")


if __name__ == "__main__":
    typer.run(main)
