"""Computes a preview of a dataset: its first records as a model's tokenizer reads them.

`python -m seft.data.preview PARENT` runs as a separate process with little time and memory, no secrets and no network,
because tokenizers and chat templates come from other people and transformers is large. It reads a JSON object with the
keys `path`, `lines` and `show` from standard input and writes a `Preview` as JSON. It ends when the process PARENT
ends. It needs no torch, unless the tokenizer is in a GGUF file.
"""

import json
import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from seft.data.chat import Tokenized, common_length
from seft.data.records import Parser
from seft.data.tokens import bos_tokens, tokenize_record
from seft.errors import SeftError, SourceError
from seft.parent_process import end_with_parent
from seft.storable import shortened

SECONDS, MEMORY_BYTES = 30, 4 << 30
MAX_SHOWN_TOKENS = 2000
"""Largest number of tokens of one record that a preview contains. The others are only counted."""
MAX_SHOWN_CHARACTERS = 50_000
"""Largest number of characters of one record that a preview contains. A tokenizer can make any text of a token."""
MAX_ERROR_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a record's text. Either all of it or none of it is trained on."""

    text: str
    trained: bool


@dataclass(frozen=True, slots=True)
class PreviewedRecord:
    """One record: its token counts and the beginning of its text."""

    tokens: int
    trained_tokens: int
    parts: list[Part]
    cut: bool
    """True if the record has more tokens or characters than the preview contains."""


@dataclass(frozen=True, slots=True)
class Preview:
    """The token counts of all given lines, and the first few records in detail."""

    lines: int
    tokens: int
    trained_tokens: int
    shown: list[PreviewedRecord]


def preview(lines: Sequence[bytes], tokenizer: Any, show: int) -> Preview:
    """Return the number of tokens of all `lines`, and the first `show` records as the tokenizer reads them.

    Raises RecordError if a line is not a valid record.
    """
    parse, head, shown = Parser(), bos_tokens(tokenizer), list[PreviewedRecord]()
    tokens = trained = 0
    for number, line in enumerate(lines, start=1):
        tokenized = tokenize_record(parse(number, line), tokenizer, head)
        tokens, trained = tokens + len(tokenized.tokens), trained + sum(tokenized.trained)
        if number <= show:
            beginning = Tokenized(tokenized.tokens[:MAX_SHOWN_TOKENS], tokenized.trained[:MAX_SHOWN_TOKENS])
            text = tokenizer.decode(beginning.tokens)
            cut = len(tokenized.tokens) > MAX_SHOWN_TOKENS or len(text) > MAX_SHOWN_CHARACTERS
            parts = list(_parts(beginning, tokenizer, text[:MAX_SHOWN_CHARACTERS]))
            shown.append(PreviewedRecord(len(tokenized.tokens), sum(tokenized.trained), parts, cut))
    return Preview(len(lines), tokens, trained, shown)


def _parts(tokenized: Tokenized, tokenizer: Any, whole: str) -> Iterator[Part]:
    """Yield the text of each run of tokens that are all trained on, or all not. `whole` is the text of all tokens.

    If a character consists of tokens of two runs, it belongs to the second run.
    """
    start = end = 0
    for trained, run in groupby(tokenized.trained):
        end += len(list(run))
        last = end == len(tokenized.tokens)
        until = len(whole) if last else common_length(whole, tokenizer.decode(tokenized.tokens[:end]))
        if until > start:
            yield Part(whole[start:until], trained)
        start = max(start, until)
        if start == len(whole):
            return  # what follows was cut off


def main() -> None:
    """Read one request from standard input and write its preview to standard output.

    An error ends the process with one line on standard error.
    """
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    request = json.load(sys.stdin)
    try:
        lines = [line.encode() for line in request["lines"]]
        answer = preview(lines, _load_tokenizer(Path(request["path"])), request["show"])
    except SeftError as error:
        sys.exit(shortened(str(error), MAX_ERROR_CHARACTERS))
    except MemoryError:
        sys.exit(f"the tokenizer and its template must need less than {MEMORY_BYTES} bytes of memory")
    json.dump(asdict(answer), sys.stdout)


def _load_tokenizer(path: Path) -> Any:
    """Load the tokenizer of a folder or a GGUF file, as `seft.models.load` does. Does not import torch for a folder."""
    options = {"gguf_file": path.name} if path.is_file() else {}
    if not options:
        sys.modules["torch"] = None  # type: ignore[assignment]  # transformers would import it, which takes seconds
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent if options else path, trust_remote_code=False, **options)
        if options:
            from seft.models.gguf_header import read_header
            from seft.models.gguf_steps import set_steps

            set_steps(tokenizer, read_header(path, ())[0])
        return tokenizer
    except Exception as error:
        raise SourceError("model_refused", f"the tokenizer must load in transformers; it fails: {error}") from error


if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    main()
