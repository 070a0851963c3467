"""What a model would read of a dataset: its first records as text and tokens, and how many tokens there are in all."""

import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import seft
from core.errors import Code, Flaw, ProblemError
from core.infra.storage import Storage
from core.tables import Dataset, Json

SAMPLE_BYTES = 256 << 10
"""Of a dataset, whose tokens are counted; the rest is estimated from them."""
SECONDS = 60


@dataclass(frozen=True, slots=True)
class Preview:
    """The first `records` as `seft.data.preview` shows them, and the tokens of all: an estimate unless all were counted."""

    records: list[Json]
    counted_records: int
    tokens: int
    trained_tokens: int


def preview(storage: Storage, dataset: Dataset, tokenizer: Path, show: int) -> Preview:
    """Look at a dataset with the tokenizer in a folder or a GGUF file; MODEL_REFUSED where that cannot be done."""
    lines = _beginning(storage, dataset)
    seen = _asked(tokenizer, lines, show)
    share = sum(map(len, lines)) / dataset.bytes
    totals = (round(seen[name] / share) for name in ("tokens", "trained_tokens"))
    return Preview(seen["shown"], seen["lines"], *totals)


def _beginning(storage: Storage, dataset: Dataset) -> list[bytes]:
    """The first whole lines; one at least, however long it is."""
    end = SAMPLE_BYTES
    while True:
        content = storage.read(dataset.object_key, end)
        whole = len(content) if end >= dataset.bytes else content.rfind(b"\n") + 1
        if whole:
            return io.BytesIO(content[:whole]).readlines()
        end *= 8


def _asked(tokenizer: Path, lines: list[bytes], show: int) -> Json:
    """The answer of a process of its own, whose environment holds no secret."""
    question = json.dumps({"path": str(tokenizer), "lines": [line.decode() for line in lines], "show": show})
    package_root = str(Path(seft.__file__).parents[1])
    environment = {"PYTHONPATH": package_root, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "seft.data.preview"],
            check=False,
            input=question,
            env=environment,
            timeout=SECONDS,
            capture_output=True,
            encoding="utf-8",
        )
    except subprocess.TimeoutExpired as error:
        raise _refused(f"the tokenizer and its template must be done within {SECONDS} s") from error
    if ended.returncode:
        raise _refused((ended.stderr.strip().splitlines() or ["the process that ran the tokenizer died"])[-1])
    answer: Json = json.loads(ended.stdout)
    return answer


def _refused(detail: str) -> ProblemError:
    flaw = Flaw("model", "must have a tokenizer that reads this dataset", detail, "Choose another model.")
    return ProblemError(
        Code.MODEL_REFUSED, f"This dataset cannot be read with that model's tokenizer: {detail}", (flaw,)
    )
