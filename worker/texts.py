"""The datasets of one job, read and tokenized by the training process."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from seft import stages
from seft.checkpoint.facts import Facts, Role, TextInfo
from seft.config import EvaluateConfig, PruneConfig, RepairConfig, Retain
from seft.data import records
from seft.data.packing import Packed, pack
from seft.data.text import encode, evaluation_windows, named, split_described
from seft.retain import start_tokens
from seft.texts import describe_records, describe_retained, split_dataset
from worker.protocol import DATA, HELD_OUT_DATA, RETAIN_DATA, Task


@dataclass(frozen=True, slots=True)
class JobTexts:
    """The tokenized datasets: training records, held-out records, calibration text from the training records."""

    calibration: Int[Tensor, "windows tokens"]
    training: Packed | None
    """None if the job does not train."""
    held_out: Packed
    start_tokens: list[int]
    """Tokens after which the dense model writes the text to retain. Empty if it writes none."""
    retained: Packed | None
    """Windows of the dataset to retain, if there is one and no saved state has them."""
    described: dict[Role, TextInfo]
    """Descriptions of the training records and the held-out records."""

    def add_to(self, facts: Facts, task: Task, retained: Packed | None) -> Facts:
        """Return the facts with descriptions and hashes of the datasets. `retained` is the retained text, or None."""
        described = dict(self.described)
        if retained is not None:
            described["retained"] = describe_retained(task.names.get(RETAIN_DATA), retained)
        return replace(
            facts,
            texts=described,
            held_out_share=task.spec.evaluate.held_out,
            dataset_sha256=task.dataset_sha256,
            retained_sha256=task.retained_sha256 if retained is not None else None,
            held_out_sha256=task.held_out_sha256,
        )


def read_texts(
    folder: Path,
    task: Task,
    tokenizer: Any,
    *,
    prune: PruneConfig,
    repair: RepairConfig | None,
    evaluate: EvaluateConfig,
    heartbeat: Callable[[int], None],
) -> JobTexts:
    """Read and tokenize the datasets in a job's folder. Raises DataError if the text is too short.

    Calls `heartbeat` before each record with the number of records that are done. `heartbeat` may raise an error.
    """
    share, found = task.spec.evaluate.held_out, records.read(folder / DATA, "the dataset")
    separate_records = None if share else records.read(folder / HELD_OUT_DATA, "the dataset to evaluate on")
    training, held_out = split_dataset(found, separate_records, share, task.spec.seed)
    encoded = encode(training, tokenizer, heartbeat)
    evaluated = encode(held_out, tokenizer, lambda done: heartbeat(len(training) + done))
    retained = None
    if task.resume is None and repair and repair.retain is Retain.DATASET:
        with named("text to retain", "repair.retain_dataset"):
            kept = records.exclude(records.read(folder / RETAIN_DATA, "the dataset to retain"), held_out)
        retained = stages.windows_to_retain(encode(kept, tokenizer, lambda done: heartbeat(len(found) + done)), repair)
    with split_described(encoded, evaluated) if share else nullcontext():
        with named("training text", "dataset", "prune.calibration.tokens"):
            calibration = stages.calibration_windows(encoded, tokenizer, prune)
        with named("training text", "dataset", "repair.sequence_tokens"):
            packed = pack(encoded, repair.sequence_tokens) if repair else None
        with named("held-out text", "evaluate.tokens", "evaluate.held_out", "evaluate.dataset"):
            windows = evaluation_windows(evaluated, evaluate.tokens, evaluate.windows)
    start = start_tokens(tokenizer) if repair and repair.retain is Retain.WRITTEN else []
    described: dict[Role, TextInfo] = {
        "dataset": describe_records(task.names.get(DATA), encoded),
        "held_out": describe_records(task.names.get(DATA if share else HELD_OUT_DATA), evaluated),
    }
    return JobTexts(calibration, packed, windows, start, retained, described)
