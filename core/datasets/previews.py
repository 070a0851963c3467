"""Dataset previews: the first records as training input of a model, and the number of tokens of the dataset."""

import io
import json
import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.to_thread import run_sync

import seft
from core.errors import Code, Flaw, ProblemError
from core.infra import temporary
from core.infra.storage import Storage
from core.tables import Dataset, Json
from seft.models.loadable import loadable

SAMPLE_BYTES = 256 << 10
"""Bytes at the start of a dataset whose tokens are counted. The total is estimated from them."""
SECONDS = 60
"""Maximum seconds that the tokenizer process may run."""


@dataclass(frozen=True, slots=True)
class Preview:
    """The first records of a dataset as training input of a model, and token counts of the whole dataset.

    `records` are in the format of `seft.data.preview`. The token counts are exact if `counted_records` is the number
    of all records. Otherwise they are estimated from the start of the dataset.
    """

    records: list[Json]
    counted_records: int
    tokens: int
    trained_tokens: int


async def preview(storage: Storage, dataset: Dataset, tokenizer: Path, show: int) -> Preview:
    """Preview the first `show` records of a dataset. `tokenizer` is a folder or a GGUF file with the model's tokenizer.

    If it is cancelled, the tokenizer process is killed. Raises MODEL_REFUSED if the tokenizer fails on this dataset.
    """
    lines = await run_sync(_first_lines, storage, dataset)
    with ExitStack() as stack:
        parent = await run_sync(stack.enter_context, temporary.folder())
        folder = await run_sync(stack.enter_context, loadable(tokenizer, parent))
        answer = await _run_tokenizer(folder / tokenizer.name if tokenizer.is_file() else folder, lines, show)
    fraction = sum(map(len, lines)) / dataset.bytes
    totals = (round(answer[name] / fraction) for name in ("tokens", "trained_tokens"))
    return Preview(answer["shown"], answer["lines"], *totals)


def _first_lines(storage: Storage, dataset: Dataset) -> list[bytes]:
    """Return the complete lines in the first `SAMPLE_BYTES` of the dataset.

    If the first line is longer than that, read until its end.
    """
    end = SAMPLE_BYTES
    while True:
        content = storage.read(dataset.object_key, end)
        whole = len(content) if end >= dataset.bytes else content.rfind(b"\n") + 1
        if whole:
            return io.BytesIO(content[:whole]).readlines()
        end *= 8


async def _run_tokenizer(tokenizer: Path, lines: list[bytes], show: int) -> Json:
    """Run `seft.data.preview` in a separate process and return its result.

    The environment of that process contains no secrets, and the process is confined. It ends when this process ends.
    """
    request = json.dumps({"path": str(tokenizer), "lines": [line.decode() for line in lines], "show": show})
    package_root = str(Path(seft.__file__).parents[1])
    environment = {"PYTHONPATH": package_root, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    try:
        with anyio.fail_after(SECONDS):
            process = await anyio.run_process(
                [sys.executable, "-P", "-m", "core.datasets.tokenizer_process", str(tokenizer), str(os.getpid())],
                check=False,
                input=request.encode(),
                env=environment,
            )
    except TimeoutError as error:
        raise _tokenizer_error(f"the tokenizer did not finish within {SECONDS} s") from error
    if process.returncode:
        output = process.stderr.decode(errors="replace").strip().splitlines()
        raise _tokenizer_error((output or ["the tokenizer process crashed"])[-1])
    answer: Json = json.loads(process.stdout)
    return answer


def _tokenizer_error(detail: str) -> ProblemError:
    detail = f"{detail.removesuffix('.')}."
    rule = f"must have a tokenizer that can read this dataset. The tokenizer of this model failed: {detail}"
    flaw = Flaw("model", rule, "this model", "Choose a different model or dataset.")
    return ProblemError(Code.MODEL_REFUSED, f"The model's tokenizer cannot read this dataset: {detail}", (flaw,))
