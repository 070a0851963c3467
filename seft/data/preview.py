"""The beginning of a dataset as a model's tokenizer reads it: `python -m seft.data.preview`, a process of its own.

A tokenizer and the template beside it are foreign, and transformers is large: this process is given little time and
memory, no secret and no network. It reads `{"path", "lines", "show"}` as JSON from standard input and writes a `Seen`.
It needs no torch, unless the tokenizer lies in a GGUF file.
"""

import json
import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from seft.data.chat import Marked, common
from seft.data.marking import beginning, mark
from seft.data.records import Parser
from seft.errors import SeftError, SourceError

SECONDS, BYTES = 30, 4 << 30
SHOWN_TOKENS = 2000
"""Of one record; the rest is counted only."""


@dataclass(frozen=True, slots=True)
class Part:
    """Text of a record that is trained on, or is not."""

    text: str
    trained: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """A record."""

    tokens: int
    trained_tokens: int
    parts: list[Part]
    cut: bool
    """Whether there is more of it than is shown."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the lines hold, and the first of them."""

    lines: int
    tokens: int
    trained_tokens: int
    shown: list[Shown]


def look(lines: Sequence[bytes], tokenizer: Any, show: int) -> Seen:
    """Count the tokens of all lines, and show so many of them."""
    parse, head, shown = Parser(), beginning(tokenizer), list[Shown]()
    tokens = trained = 0
    for number, line in enumerate(lines, start=1):
        marked = mark(parse(number, line), tokenizer, head)
        tokens, trained = tokens + len(marked.tokens), trained + sum(marked.trained)
        if number <= show:
            cut = len(marked.tokens) > SHOWN_TOKENS
            parts = list(_parts(Marked(marked.tokens[:SHOWN_TOKENS], marked.trained[:SHOWN_TOKENS]), tokenizer))
            shown.append(Shown(len(marked.tokens), sum(marked.trained), parts, cut))
    return Seen(len(lines), tokens, trained, shown)


def _parts(marked: Marked, tokenizer: Any) -> Iterator[Part]:
    """Tokens as text. One that is only a part of a character belongs to what comes after it."""
    whole, start, end = tokenizer.decode(marked.tokens), 0, 0
    for trained, run in groupby(marked.trained):
        end += len(list(run))
        until = common(whole, tokenizer.decode(marked.tokens[:end])) if end < len(marked.tokens) else len(whole)
        if until > start:
            yield Part(whole[start:until], trained)
        start = max(start, until)


def main() -> None:
    """Answer, or end with one line on standard error."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    asked = json.load(sys.stdin)
    try:
        seen = look([line.encode() for line in asked["lines"]], _tokenizer(Path(asked["path"])), asked["show"])
    except SeftError as error:
        sys.exit(str(error))
    except MemoryError:
        sys.exit(f"the tokenizer and its template must take less than {BYTES} bytes of memory")
    json.dump(asdict(seen), sys.stdout)


def _tokenizer(path: Path) -> Any:
    """Of a folder or a GGUF file, as `seft.models.load` would load it."""
    where = {"gguf_file": path.name} if path.is_file() else {}
    if not where:
        sys.modules["torch"] = None  # type: ignore[assignment]  # transformers would load it, seconds for nothing
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path.parent if where else path, trust_remote_code=False, **where)
    except Exception as error:
        raise SourceError("model_refused", f"the tokenizer must load in transformers: {error}") from error


if __name__ == "__main__":
    main()
