"""A stack of containers of its own: its project's name, its address on loopback, its secrets, its tiny model."""

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
    """The stack and a client that speaks to it; every command is shown."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        train_tiny(folder / "models" / "tiny")
        (folder / "data.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny_texts()[:60]))
        (folder / "settings.env").write_text("SEFT_LEASE_SECONDS=10\nSEFT_CHECKPOINT_SECONDS=1\nSEFT_THREADS=1\n")
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
        passwords = {f"SEFT_{name}_PASSWORD": secrets.token_hex(16) for name in ("DATABASE", "BROKER", "S3", "GRAFANA")}
        self.environment = {
            **os.environ,
            **passwords,
            "COMPOSE": " ".join(COMPOSE),
            "SEFT_PUBLISH": ADDRESS,
            "SEFT_S3_PUBLIC_ENDPOINT": f"http://{ADDRESS}:8333",
            "SEFT_MODELS": str(folder / "models"),
            "SEFT_SETTINGS": str(folder / "settings.env"),
        }

    def compose(self, *words: str, quiet: bool = True) -> str:
        """`docker compose` with the profile `cpu`; what it prints."""
        typer.echo(f"$ docker compose --profile cpu {' '.join(words)}")
        return self.run([*COMPOSE, *words], quiet=quiet)

    def backup(self, verb: str) -> None:
        """What `make backup` and `make restore` do, to this stack."""
        typer.echo(f"$ deploy/backup.sh {verb}")
        typer.echo(self.run(["deploy/backup.sh", verb, str(self.folder / "backup")]))

    def run(self, command: list[str], *, quiet: bool = True) -> str:
        """Run it in the stack's environment; SystemExit where it fails."""
        output = subprocess.PIPE if quiet else None
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, stdout=output, stderr=output, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"it ended with {done.returncode}: {done.stdout}\n{done.stderr}")
        return done.stdout or ""

    def sign_in(self) -> Client:
        """A client with a fresh key."""
        key = self.compose("exec", "--no-TTY", "api", "python", "-m", "api", "keys", "create", "--name=drill").strip()
        return Client(f"http://{ADDRESS}:8000", key)


@contextmanager
def stack() -> Iterator[Drill]:
    """For a block that starts it. In the end it goes, volumes too; where the block fails, what it said is shown."""
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
    """A job that trains for a while."""
    return client.create_job({**SPEC, "dataset": dataset})["id"]


def begin(client: Client, dataset: str) -> str:
    """Such a job, in the middle of its repair."""
    job_id = post(client, dataset)
    wait_for(lambda: in_mid_repair(client, job_id))
    typer.echo(f"{job_id} is at step {client.job(job_id)['step']}")
    return job_id


def sha256(client: Client, job_id: str) -> str:
    """Of the published checkpoint, when the job has ended well."""
    *_, job = client.watch(job_id)
    if job["status"] != "succeeded":
        raise SystemExit(f"the job did not succeed: {job}")
    typer.echo(f"{job_id} {job['status']} after {job['attempt']} attempts")
    return client.checkpoints(job_id)[0]["sha256"]


def check(client: Client, job_id: str, wanted: str) -> None:
    """The job ends with these bytes; show its way."""
    assert sha256(client, job_id) == wanted, "the bytes differ"
    ways = "job.", "attempt.", "state.missing", "state.refused"
    told = [event["type"] for event in client.events(job_id) if event["type"].startswith(ways)]
    typer.echo(f"{', '.join(told)}: the same bytes")


def wait_for(truth: Callable[[], object], seconds: float = 300) -> None:
    """Until it is true."""
    deadline = time.monotonic() + seconds
    while not truth():
        if time.monotonic() > deadline:
            raise SystemExit("it did not happen in time")
        time.sleep(0.1)


def in_mid_repair(client: Client, job_id: str) -> bool:
    """It trains, and has saved a state since it began to."""
    states = [event["data"]["step"] for event in client.events(job_id) if event["type"] == "state.saved"]
    return client.job(job_id)["phase"] == "training" and bool(states) and states[-1] > 0
