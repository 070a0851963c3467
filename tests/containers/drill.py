"""A separate stack of containers, with its own project name, loopback address, secrets and tiny model."""

import json
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from seft.client import Client
from tests.tiny import tiny_texts, train_tiny

ROOT = Path(__file__).parents[2]
ADDRESS = "127.0.0.77"
WORKER = "worker-cpu"
COMPOSE = ("docker", "compose", "--project-name=seft-drill", "--profile=cpu")
SPEC = {
    "model": "tiny",
    "sparsity": 0.6,
    "prune": {"calibration": {"samples": 8, "tokens": 128}},
    "repair": {"steps": 400, "batch_tokens": 1024, "sequence_tokens": 128, "update_interval": 5, "density": 0.02},
    "evaluate": {"windows": 8, "tokens": 128},
}


class Drill:
    """The stack and its client. Prints every command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        train_tiny(folder / "models" / "tiny")
        (folder / "data.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny_texts()[:60]))
        (folder / "settings.env").write_text("SEFT_LEASE_SECONDS=10\nSEFT_CHECKPOINT_SECONDS=1\nSEFT_THREADS=1\n")
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
        passwords = {
            f"SEFT_{name}_PASSWORD": secrets.token_hex(16)
            for name in ("DATABASE", "DATABASE_SERVICE", "BROKER", "S3", "GRAFANA")
        }
        self.environment = {
            **os.environ,
            **passwords,
            "COMPOSE": " ".join(COMPOSE),
            "SEFT_PUBLISH": ADDRESS,
            "SEFT_EDGE": "10.83.230",
            "SEFT_S3_PUBLIC_ENDPOINT": f"http://{ADDRESS}:8333",
            "SEFT_MODELS": str(folder / "models"),
            "SEFT_SETTINGS": str(folder / "settings.env"),
        }

    def compose(self, *words: str, quiet: bool = True) -> str:
        """Run `docker compose` with the profile `cpu`, and return its output."""
        typer.echo(f"$ docker compose --profile cpu {' '.join(words)}")
        return self.run([*COMPOSE, *words], quiet=quiet)

    def backup(self, verb: str) -> None:
        """Back up or restore this stack, as `make backup` and `make restore` do."""
        typer.echo(f"$ deploy/backup.sh {verb}")
        typer.echo(self.run(["deploy/backup.sh", verb, str(self.folder / "backup")]))

    def run(self, command: list[str], *, quiet: bool = True) -> str:
        """Run a command in the stack's environment, and return its output. Raises SystemExit if it fails."""
        output = subprocess.PIPE if quiet else None
        process = subprocess.run(
            command, cwd=ROOT, env=self.environment, stdout=output, stderr=output, text=True, check=False
        )
        if process.returncode:
            raise SystemExit(f"the command failed with {process.returncode}: {process.stdout}\n{process.stderr}")
        return process.stdout or ""

    def sign_in(self) -> Client:
        """Return a client with a new API key."""
        key = self.compose("exec", "--no-TTY", "api", "python", "-m", "api", "keys", "create", "--name=drill").strip()
        return Client(f"http://{ADDRESS}:8000", key)


@contextmanager
def stack() -> Iterator[Drill]:
    """Yield a stack, and remove it and its volumes afterwards. Prints the containers' logs if the block fails."""
    with tempfile.TemporaryDirectory() as folder:
        drill = Drill(Path(folder))
        try:
            yield drill
        except BaseException:
            typer.echo(drill.compose("logs", "--no-color", "--tail=40"))
            raise
        finally:
            drill.compose("down", "--volumes", "--remove-orphans")


def post(client: Client, dataset: str) -> str:
    """Create a job that trains for a while, and return its id."""
    return client.create_job({**SPEC, "dataset": dataset})["id"]


def begin(client: Client, dataset: str) -> str:
    """Create a job, wait until it is in the middle of its repair, and return its id."""
    job_id = post(client, dataset)
    wait_for(lambda: in_mid_repair(client, job_id))
    typer.echo(f"{job_id} is at step {client.job(job_id)['step']}")
    return job_id


def sha256(client: Client, job_id: str) -> str:
    """Wait until the job has succeeded, and return the hash of its checkpoint."""
    *_, job = client.watch(job_id)
    if job["status"] != "succeeded":
        raise SystemExit(f"the job did not succeed: {job}")
    typer.echo(f"{job_id} {job['status']} after {job['attempt']} attempts")
    return client.checkpoints(job_id)[0]["sha256"]


def check(client: Client, job_id: str, expected: str) -> None:
    """Check that the job ends with the expected checkpoint. Prints the job's events."""
    assert sha256(client, job_id) == expected, "the bytes differ"
    prefixes = "job.", "attempt.", "state.missing", "state.refused"
    types = [event["type"] for event in client.events(job_id) if event["type"].startswith(prefixes)]
    typer.echo(f"{', '.join(types)}: the same bytes")


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    """Wait until the condition is true. Raises SystemExit after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"the condition was not true within {seconds} s")
        time.sleep(0.1)


def in_mid_repair(client: Client, job_id: str) -> bool:
    """Return whether the job is training and has saved a state after the first step."""
    states = [event["data"]["step"] for event in client.events(job_id) if event["type"] == "state.saved"]
    return client.job(job_id)["phase"] == "training" and bool(states) and states[-1] > 0
