"""Do the formulas of `benchmarks.scaling` agree with real jobs? Runs jobs of four small random Llamas and compares.

    python -m benchmarks.scaling_check      # minutes; writes benchmarks/scaling.json

Each job runs as in a worker: written text, ADMM, repair, evaluations, export. torch's FlopCounterMode counts the
operations of each phase. It counts matrix products, and here also products that are added in place. For attention it
gets a formula of its own: it counts only the half of the products that the causal mask keeps, because the kernels
compute only this half. A second run of the same job in a process of its own measures the memory, which is the private
memory of the process above its memory before the weights were loaded.
"""

import argparse
import json
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import LlamaConfig

from benchmarks.arguments import output_file
from benchmarks.shapes import dimensions_of, random_model
from core.estimate.calibration import count_operations
from core.estimate.footprint import PROCESS_BYTES, memory_by_phase
from core.request_fields import EXAMPLE_DATASET
from core.specs import JobSpec
from core.states import Phase
from tests.tiny import tiny_texts, tiny_tokenizer
from tests.worker.peaks import measure_peaks, write_job
from worker.pipeline import Pipeline
from worker.protocol import Message, Progressed, Task

RESULTS = Path(__file__).with_name("scaling.json")
SIZES = {128: 4, 192: 6, 256: 8, 384: 8}
"""Hidden size and number of blocks of each model."""
JOB: dict[str, Any] = {
    "model": "model",
    "sparsity": 0.6,
    "dtype": "float32",
    "prune": {"calibration": {"samples": 8, "tokens": 256}},
    "repair": {"steps": 4, "batch_tokens": 1024, "sequence_tokens": 256, "micro_batch": 4, "retain_tokens": 1024},
    "evaluate": {"windows": 2, "tokens": 256},
}
METHODS: dict[str, dict[str, Any]] = {"all nonzeros": {}, "0.5 %": {"density": 0.005}}
COUNTED = (Phase.PRUNING, Phase.TRAINING, Phase.EVALUATING)
"""Phases whose operations are compared. For writing, the formula gives a time in units of a forward pass."""


@dataclass(frozen=True, slots=True)
class Row:
    """One phase of one job: its floating-point operations, and its bytes without the bytes of the process itself."""

    hidden: int
    method: str
    phase: Phase
    operations: float
    memory: int


def main() -> None:
    """Run the jobs and write the rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=output_file, default=RESULTS, help=f"JSON file; default: {RESULTS.name}")
    arguments = parser.parse_args()
    rows = []
    for hidden in SIZES:
        for method in METHODS:
            with tempfile.TemporaryDirectory() as folder:
                rows += measure(Path(folder), hidden, method)
    arguments.out.write_text(
        json.dumps({"torch": torch.__version__, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
    )
    for row in rows:
        sys.stdout.write(f"{row}\n")


def read_rows(path: Path) -> list[Row]:
    """Return the rows that `main` has written."""
    rows = json.loads(path.read_text())["rows"]
    return [Row(**{**row, "phase": Phase(row["phase"])}) for row in rows]


def config_of(hidden: int) -> LlamaConfig:
    """Return the config of a small Llama."""
    return LlamaConfig(
        vocab_size=4096,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=SIZES[hidden],
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )


def spec_of(method: str) -> JobSpec:
    """Return the job of a method."""
    return JobSpec.model_validate({**JOB, "dataset": EXAMPLE_DATASET, "repair": {**JOB["repair"], **METHODS[method]}})


def by_formula(hidden: int, method: str) -> list[Row]:
    """Return the rows of one job by the formulas of `core.estimate`."""
    model, spec = dimensions_of(config_of(hidden)), spec_of(method)
    operations, memory = count_operations(spec, model), memory_by_phase(model, spec)
    return [Row(hidden, method, phase, operations[phase], memory[phase].combined - PROCESS_BYTES) for phase in COUNTED]


def measure(folder: Path, hidden: int, method: str) -> list[Row]:
    """Return the rows of one job by two runs in the empty folder."""
    write_model(folder, hidden)
    spec = spec_of(method)
    counted, peaks = count_flops(folder, spec), measure_peaks(write_job(folder / "memory", spec, tiny_texts()))
    loading = memory_by_phase(dimensions_of(config_of(hidden)), spec)[Phase.LOADING]
    before = peaks[Phase.LOADING] - loading.device
    return [Row(hidden, method, phase, counted[phase], peaks[phase] - before) for phase in COUNTED]


def write_model(folder: Path, hidden: int) -> None:
    """Write a random model to `folder/model`."""
    random_model(config_of(hidden), "cpu", torch.bfloat16).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")


def count_flops(folder: Path, spec: JobSpec) -> dict[Phase, float]:
    """Run a job in this process, and return the operations of each phase."""
    job = write_job(folder / "flops", spec, tiny_texts()[:20])
    counts, phase, before = dict.fromkeys(Phase, 0.0), Phase.LOADING, 0.0
    causal = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _causal,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _causal_backward,
    }
    counter = FlopCounterMode(display=False, custom_mapping=causal | {torch.ops.aten.addmm_: _in_place})
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]

    def record(message: Message) -> None:
        nonlocal phase, before
        if isinstance(message, Progressed):
            counts[phase] += (now := counter.get_total_flops()) - before
            phase, before = message.phase, now

    with counter:
        Pipeline(job, Task.read(job), record, lambda: False).run()
    return counts


class _NoModules(nullcontext[None]):
    """Replaces the tracker of modules of FlopCounterMode. Its hooks forbid `torch.autograd.grad` of a leaf."""

    parents = frozenset({"Global"})


def _causal(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value)) // 2  # type: ignore[no-untyped-call]


def _causal_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value)) // 2  # type: ignore[no-untyped-call]


def _in_place(_: Any, left: Any, right: Any, **__: Any) -> int:
    return 2 * int(left[0] * left[1] * right[1])


if __name__ == "__main__":
    main()
