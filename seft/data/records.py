"""Parses the records of a dataset: one JSON object per line, in one of four formats. Needs no torch.

A server checks an upload line by line with a `Parser`, and a worker reads the same file with `read`, so both apply the
same rules. The format of the first record is the format of the file. Records in other formats are rejected.
"""

import hashlib
import json
from codecs import BOM_UTF8
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar, assert_never

from seft.errors import ConfigError, DataError, FileError, RecordError, place

DATA_ENDING, COMPRESSED_ENDING = r"(\.(jsonl|ndjson|json|parquet))", r"(\.(gz|zst))"
"""Patterns of the endings that the names of dataset files and of compressed files usually have."""


class Format(StrEnum):
    """Format of all records of a file."""

    TEXT = "text"
    MESSAGES = "messages"
    COMPLETION = "prompt_completion"
    INSTRUCTION = "instruction"


class Role(StrEnum):
    """Role of the sender of a message, as in chat templates."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation. The assistant's messages are trained on.

    `place` is its place in the file, for errors. It is not compared: equal conversations in two lines are equal.
    """

    messages: tuple[Message, ...]
    place: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt and its completion. Only the completion is trained on."""

    prompt: str
    completion: str


Record = str | Chat | Completion
"""One record. A plain text is a string, and all of it is trained on."""
R = TypeVar("R", bound=Record)

KEYS = {
    Format.TEXT: ("text",),
    Format.MESSAGES: ("messages",),
    Format.COMPLETION: ("prompt", "completion"),
    Format.INSTRUCTION: ("instruction", "output"),
}
"""Keys that a record must have, per format."""
EXAMPLES = {
    Format.TEXT: '{"text": "…"}',
    Format.MESSAGES: '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}',
    Format.COMPLETION: '{"prompt": "…", "completion": "…"}',
    Format.INSTRUCTION: '{"instruction": "…", "input": "", "output": "…"}',
}
_ONE_A_LINE = "must have one record per line"
WAY_OUT = f"Write one JSON object per line, such as {EXAMPLES[Format.TEXT]}."

_ALPACA = """Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Response:
"""
_ALPACA_WITH_INPUT = """Below is an instruction that describes a task, paired with an input that provides further \
context. Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Input:
{input}

### Response:
"""


class Parser:
    """Parses the lines of one file. Errors name the `file`, if it is given.

    `format` is the format of its first record, or None before the first record.
    """

    def __init__(self, file: str = "") -> None:
        self.format: Format | None = None
        self._file = file

    def __call__(self, line: int, raw: bytes) -> Record:
        """Return the record of one line. Keys that no format has are ignored.

        Raises RecordError if the line is not a valid record. Lone surrogates are invalid, because a tokenizer cannot
        read them.
        """
        try:
            return self._parse(line, raw)
        except RecordError as error:
            if not self._file:
                raise
            raise RecordError(error.line, error.rule, error.value, error.way_out, self._file) from None

    def _parse(self, line: int, raw: bytes) -> Record:
        fields = _Fields(line, _parse_object(line, raw))
        self.format = form = self.format or _format_of(fields)
        if missing := [key for key in KEYS[form] if key not in fields.values]:
            rule = f"a record must have the key `{missing[0]}`, because the file's format is {form}"
            raise RecordError(line, rule, fields.summary, _example(form))
        match form:
            case Format.TEXT:
                return fields.nonblank("text")
            case Format.MESSAGES:
                return replace(fields.chat(), place=place(line, self._file))
            case Format.COMPLETION:
                return Completion(fields.nonblank("prompt"), fields.nonblank("completion"))
            case Format.INSTRUCTION:
                return _instruction(fields)
            case _:
                assert_never(form)


def read(path: Path, name: str = "") -> list[Record]:
    """Return the records of a `.jsonl` file. A `.txt` file is one record.

    `name` is what errors call the file. The default is the name of the file.
    """
    require_file(path)
    if path.suffix == ".txt":
        return [_decode(1, path.read_bytes())]
    parse = Parser(name or path.name)
    with path.open("rb") as file:
        require_lines(file.readline(), alone=not file.read(1))
        file.seek(0)
        records = [parse(number, raw) for number, raw in enumerate(file, start=1)]
    if not records:
        raise DataError(f"{path.name} must have at least one record; it has no record. {WAY_OUT}")
    return records


def require_file(path: Path, field: str = "data") -> None:
    """Raise ConfigError unless `path` is a `.jsonl` or `.txt` file. `field` is the name of the setting in the error."""
    if path.suffix not in (".jsonl", ".txt"):
        raise ConfigError(field, "must end in .jsonl or .txt", path.name, WAY_OUT)
    if not path.is_file():
        raise ConfigError(field, "must be a file", str(path), "Check the path.")


def require_lines(first: bytes, *, alone: bool) -> None:
    """Raise FileError if a file is one JSON array, or if its records are JSON objects of several lines.

    `first` is the first line of the file. `alone` is true if the file has no other line.
    """
    text = first.removeprefix(BOM_UTF8).strip()
    if text.startswith(b"[") and (alone or not _is_json(text)):
        raise FileError(_ONE_A_LINE, "one JSON array", "Run jq -c '.[]' FILE > NEW.jsonl, which converts it.")
    if text == b"{":
        value = "a file whose first record has several lines"
        raise FileError(_ONE_A_LINE, value, "Run jq -c . FILE > NEW.jsonl, which converts it.")


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def split(records: Sequence[R], held_out: float, seed: int) -> tuple[list[R], list[R]]:
    """Split records into training records and evaluation records. Returns both lists in this order.

    `held_out` is the fraction of distinct records that are for evaluation: at least one record, never all. They are the
    records with the lowest sha256 of seed and record. Equal records stay together, so no evaluation record is trained
    on. Both lists keep the order of the file. Raises DataError if there are fewer than two distinct records.
    """
    distinct = set(records)
    ranked = sorted(distinct, key=lambda record: hashlib.sha256(f"{seed} {_identity(record)}".encode()).digest())
    if len(ranked) < 2:
        raise DataError(
            f"a dataset must have two distinct records, for training and for evaluation; it has {len(ranked)}."
            " Give more records."
        )
    evaluation = set(ranked[: min(max(1, round(held_out * len(ranked))), len(ranked) - 1)])
    training = [record for record in records if record not in evaluation]
    return training, [record for record in records if record in evaluation]


def exclude(records: Sequence[R], evaluation: Sequence[R]) -> list[R]:
    """Return the records that are not in `evaluation`, in their order. So no evaluation record is trained on.

    Raises DataError if there is none.
    """
    excluded = set(evaluation)
    training = [record for record in records if record not in excluded]
    if not training:
        raise DataError(
            f"a dataset must have a record that is not evaluated on; it has {len(records)}, and all are evaluated on."
            " Give other records."
        )
    return training


def _identity(record: Record) -> str:
    if isinstance(record, str):
        return record
    return json.dumps({name: value for name, value in asdict(record).items() if name != "place"})


def _instruction(fields: "_Fields") -> Completion:
    """Return the instruction as a prompt and its output as the completion.

    The layout comes from Stanford Alpaca (github.com/tatsu-lab/stanford_alpaca, train.py).
    """
    context = fields.string("input") if "input" in fields.values else ""
    layout = _ALPACA_WITH_INPUT if context.strip() else _ALPACA
    prompt = layout.format(instruction=fields.nonblank("instruction"), input=context)
    return Completion(prompt, fields.nonblank("output"))


def _format_of(fields: "_Fields") -> Format:
    """Return the format whose keys this record has. It is the first record of its file."""
    matches = [form for form, keys in KEYS.items() if all(key in fields.values for key in keys)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        rule = f"a record must be of one format, not of {' and '.join(matches)} at once"
        raise RecordError(fields.line, rule, fields.summary, "Remove the keys of all formats but one.")
    formats = ", ".join(" and ".join(f"`{key}`" for key in keys) for keys in KEYS.values())
    raise RecordError(fields.line, f"a record must have the keys of a format: {formats}", fields.summary, WAY_OUT)


def _example(form: Format) -> str:
    return f"Write every line like {EXAMPLES[form]}."


@dataclass(frozen=True, slots=True)
class _Fields:
    """Checked access to the values of a JSON object in a line. `path` is where the object is inside the line."""

    line: int
    values: dict[str, Any]
    path: str = ""

    @property
    def summary(self) -> str:
        """Keys of the object, for an error message."""
        return _short(f"an object with the keys {', '.join(map(repr, self.values)) or 'none'}", 120)

    def string(self, key: str) -> str:
        """Return the value of `key`. Raises RecordError if it is not a string of valid Unicode."""
        text = self.values.get(key)
        if not isinstance(text, str):
            raise self.error(key, "must be a string", _short(json.dumps(text)), "Write it as a JSON string.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            value = f"a lone surrogate at character {error.start}"
            raise self.error(key, "must be valid Unicode", value, "Write it as UTF-8.") from error
        return text

    def nonblank(self, key: str) -> str:
        """Return the value of `key`. Raises RecordError if it is not a string with more than white space."""
        text = self.string(key)
        if not text.strip():
            raise self.error(key, "must not be blank", _short(json.dumps(text)), "Remove the line.")
        return text

    def chat(self) -> Chat:
        """Return the conversation in this object. Raises RecordError if it has no message of the assistant."""
        items = self.values["messages"]
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            value = _short(json.dumps(items))
            raise self.error("messages", "must be a list of objects", value, _example(Format.MESSAGES))
        fields = [_Fields(self.line, item, f"messages[{number}].") for number, item in enumerate(items)]
        messages = tuple(each.message() for each in fields)
        roles = [message.role for message in messages]
        for broken, rule in (
            (
                Role.ASSISTANT not in roles,
                "must have a message with the role assistant, because only such messages are trained on",
            ),
            (roles[:1] == [Role.ASSISTANT], "must not begin with the role assistant, because its messages are answers"),
        ):
            if broken:
                raise self.error(
                    "messages", rule, _short(f"a list with the roles {', '.join(roles) or 'none'}"), "Remove the line."
                )
        return Chat(messages)

    def message(self) -> Message:
        """Return the message in this object.

        Raises RecordError for tool calls, because they would not be trained on.
        """
        role = self.string("role")
        if role not in {*Role}:
            rule = f"must be one of {', '.join(Role)}"
            raise self.error("role", rule, _short(json.dumps(role)), "Use the role names of chat templates.")
        if self.values.get("tool_calls"):
            value = _short(json.dumps(self.values["tool_calls"]))
            raise self.error("tool_calls", "must be empty", value, "Write the call into the content.")
        return Message(Role(role), self.nonblank("content") if role == Role.ASSISTANT else self.string("content"))

    def error(self, key: str, rule: str, value: str, way_out: str) -> RecordError:
        """Return the error for the value of one key."""
        return RecordError(self.line, f"`{self.path}{key}` {rule}", value, way_out)


def _parse_object(line: int, raw: bytes) -> dict[str, Any]:
    text = _decode(line, raw)
    if not text.strip():
        raise RecordError(line, "a line must not be blank", "a blank line", "Run grep '[^[:space:]]' FILE > NEW.jsonl.")
    try:
        # Without the line end, the error for an object that is not closed is at the end of this line.
        record = json.loads(text.rstrip())
    except (ValueError, RecursionError) as error:
        flaw = f"{error.msg} at character {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise RecordError(line, f"a line must be JSON ({flaw})", _short(repr(text.strip())), WAY_OUT) from error
    if not isinstance(record, dict):
        raise RecordError(line, "a line must be a JSON object", _short(json.dumps(record)), WAY_OUT)
    return record


def _decode(line: int, raw: bytes) -> str:
    """Return the text of a line in UTF-8, without a byte order mark at its start."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        value = f"byte {raw[error.start]:#04x} at offset {error.start}"
        raise RecordError(line, "text must be UTF-8", value, "Save the file as UTF-8.") from error


def _short(value: str, length: int = 60) -> str:
    return value if len(value) <= length else f"{value[: length - 1]}…"
