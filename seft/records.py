"""The records of a dataset: one JSON object with a `text` per line. Needs no torch.

A server checks an upload line by line with `parse_line`, a worker reads the same file with `read`, so both agree on
what a dataset is. Other formats are refused, not guessed.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seft.errors import ConfigError, DataError, RecordError

_WAY_OUT = 'Write one JSON object per line: {"text": "…"}.'


def parse_line(line_number: int, raw: bytes) -> str:
    """The text of one line; RecordError with the line, the rule and the value where there is none.

    Keys other than `text` are ignored. Half a surrogate pair is refused: it is no text that a tokenizer can read.
    """
    record = _parse_object(line_number, raw)
    if "text" not in record:
        keys = ", ".join(map(repr, record)) or "none"
        raise RecordError(line_number, "a record must have the key `text`", f"an object with the keys {keys}", _WAY_OUT)
    text = record["text"]
    if not isinstance(text, str):
        raise RecordError(line_number, "`text` must be a string", _short(json.dumps(text)), _WAY_OUT)
    if not text.strip():
        raise RecordError(line_number, "`text` must not be blank", _short(json.dumps(text)), "Drop the line.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RecordError(
            line_number, "`text` must be Unicode", f"a lone surrogate at character {error.start}", "Write it as UTF-8."
        ) from error
    return text


def read(path: Path) -> list[str]:
    """The records of a `.jsonl` file, or a `.txt` file whole as one record."""
    if path.suffix not in (".jsonl", ".txt"):
        raise ConfigError("data", "must end in .jsonl or .txt", path.name, _WAY_OUT)
    if not path.is_file():
        raise ConfigError("data", "must be a file", str(path), "Check the path.")
    if path.suffix == ".txt":
        return [_decode(1, path.read_bytes())]
    with path.open("rb") as file:
        texts = [parse_line(number, raw) for number, raw in enumerate(file, start=1)]
    if not texts:
        raise DataError(f"{path.name} has no record. {_WAY_OUT}")
    return texts


def split(texts: Sequence[str], held_out: float, seed: int) -> tuple[list[str], list[str]]:
    """Texts to train on and texts to judge by, in this order.

    The distinct texts whose sha256 with the seed ranks lowest are held out: about `held_out` of them, at least one,
    never all. Equal texts stay together, so nothing that is judged by was trained on. Each side keeps the file's order.
    """
    ranked = sorted(set(texts), key=lambda text: hashlib.sha256(f"{seed} {text}".encode()).digest())
    if len(ranked) < 2:
        raise DataError(f"two distinct records are needed, to train on and to judge by; there are {len(ranked)}.")
    judges = set(ranked[: min(max(1, round(held_out * len(ranked))), len(ranked) - 1)])
    return [text for text in texts if text not in judges], [text for text in texts if text in judges]


def _parse_object(line_number: int, raw: bytes) -> dict[str, Any]:
    try:
        record = json.loads(_decode(line_number, raw))
    except (ValueError, RecursionError) as error:
        raise RecordError(line_number, f"a line must be JSON ({error})", _short(repr(raw)), _WAY_OUT) from error
    if not isinstance(record, dict):
        raise RecordError(line_number, "a line must be a JSON object", _short(json.dumps(record)), _WAY_OUT)
    return record


def _decode(line_number: int, raw: bytes) -> str:
    """UTF-8, a byte order mark at the start ignored."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        seen = f"byte {raw[error.start]:#04x} at offset {error.start}"
        raise RecordError(line_number, "text must be UTF-8", seen, "Save the file as UTF-8.") from error


def _short(value: str) -> str:
    return value if len(value) <= 60 else f"{value[:59]}…"
