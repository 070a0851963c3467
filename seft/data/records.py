"""The records of a dataset: one JSON object per line, in one of four formats. Needs no torch.

A server checks an upload line by line with a `Parser`, a worker reads the same file with `read`, so both agree on what
a dataset is. The first record decides the format of a file; other formats are refused, not guessed.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar, assert_never

from seft.errors import ConfigError, DataError, RecordError


class Format(StrEnum):
    """What the records of a file are."""

    TEXT = "text"
    MESSAGES = "messages"
    COMPLETION = "prompt_completion"
    INSTRUCTION = "instruction"


class Role(StrEnum):
    """Who says a message, as chat templates know it."""

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
    """A conversation, in which what the assistant says is trained on."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """A completion, which is trained on, and the prompt before it, which is not."""

    prompt: str
    completion: str


Record = str | Chat | Completion
"""A text is trained on whole."""
R = TypeVar("R", bound=Record)

KEYS = {
    Format.TEXT: ("text",),
    Format.MESSAGES: ("messages",),
    Format.COMPLETION: ("prompt", "completion"),
    Format.INSTRUCTION: ("instruction", "output"),
}
"""The keys that a record of each format must have."""
EXAMPLES = {
    Format.TEXT: '{"text": "…"}',
    Format.MESSAGES: '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}',
    Format.COMPLETION: '{"prompt": "…", "completion": "…"}',
    Format.INSTRUCTION: '{"instruction": "…", "input": "", "output": "…"}',
}
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
    """Reads the lines of one file. `format` is that of its first record, None before it."""

    def __init__(self) -> None:
        self.format: Format | None = None

    def __call__(self, line: int, raw: bytes) -> Record:
        """The record of a line; RecordError with the line, the rule and the value where there is none.

        Keys of no format are ignored. Half a surrogate pair is refused: it is no text that a tokenizer can read.
        """
        fields = _Fields(line, _parse_object(line, raw))
        self.format = form = self.format or _format_of(fields)
        if missing := [key for key in KEYS[form] if key not in fields.values]:
            rule = f"a record must have the key `{missing[0]}`, as the file's format is {form}"
            raise RecordError(line, rule, fields.seen, _like(form))
        match form:
            case Format.TEXT:
                return fields.filled("text")
            case Format.MESSAGES:
                return fields.chat()
            case Format.COMPLETION:
                return Completion(fields.filled("prompt"), fields.filled("completion"))
            case Format.INSTRUCTION:
                return _instruction(fields)
            case _:
                assert_never(form)


def read(path: Path) -> list[Record]:
    """The records of a `.jsonl` file, or a `.txt` file whole as one record."""
    if path.suffix not in (".jsonl", ".txt"):
        raise ConfigError("data", "must end in .jsonl or .txt", path.name, WAY_OUT)
    if not path.is_file():
        raise ConfigError("data", "must be a file", str(path), "Check the path.")
    if path.suffix == ".txt":
        return [_decode(1, path.read_bytes())]
    parse = Parser()
    with path.open("rb") as file:
        records = [parse(number, raw) for number, raw in enumerate(file, start=1)]
    if not records:
        raise DataError(f"{path.name} has no record. {WAY_OUT}")
    return records


def split(records: Sequence[R], held_out: float, seed: int) -> tuple[list[R], list[R]]:
    """Records to train on and records to judge by, in this order.

    The distinct records whose sha256 with the seed ranks lowest are held out: about `held_out` of them, at least one,
    never all. Equal records stay together, so nothing that is judged by was trained on. Each side keeps the file's
    order.
    """
    distinct = set(records)
    ranked = sorted(distinct, key=lambda record: hashlib.sha256(f"{seed} {_identity(record)}".encode()).digest())
    if len(ranked) < 2:
        raise DataError(f"two distinct records are needed, to train on and to judge by; there are {len(ranked)}.")
    judges = set(ranked[: min(max(1, round(held_out * len(ranked))), len(ranked) - 1)])
    return [each for each in records if each not in judges], [each for each in records if each in judges]


def _identity(record: Record) -> str:
    return record if isinstance(record, str) else json.dumps(asdict(record))


def _instruction(fields: "_Fields") -> Completion:
    """In the layout that Stanford Alpaca published (github.com/tatsu-lab/stanford_alpaca, train.py)."""
    context = fields.string("input") if "input" in fields.values else ""
    layout = _ALPACA_WITH_INPUT if context.strip() else _ALPACA
    prompt = layout.format(instruction=fields.filled("instruction"), input=context)
    return Completion(prompt, fields.filled("output"))


def _format_of(fields: "_Fields") -> Format:
    """The format whose keys a first record has."""
    fitting = [form for form, keys in KEYS.items() if all(key in fields.values for key in keys)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        rule = f"a record must be of one format, not of {' and '.join(fitting)} at once"
        raise RecordError(fields.line, rule, fields.seen, "Leave the keys of all formats but one out.")
    known = ", ".join(" and ".join(f"`{key}`" for key in keys) for keys in KEYS.values())
    raise RecordError(fields.line, f"a record must have the keys of a format: {known}", fields.seen, WAY_OUT)


def _like(form: Format) -> str:
    return f"Write every line like {EXAMPLES[form]}."


@dataclass(frozen=True, slots=True)
class _Fields:
    """An object in a line, and its values as they must be. `where` tells which object of the line it is."""

    line: int
    values: dict[str, Any]
    where: str = ""

    @property
    def seen(self) -> str:
        """The keys, for an error."""
        return _short(f"an object with the keys {', '.join(map(repr, self.values)) or 'none'}", 120)

    def string(self, key: str) -> str:
        """A string that is Unicode."""
        text = self.values.get(key)
        if not isinstance(text, str):
            raise self.error(key, "must be a string", _short(json.dumps(text)), "Write it as a JSON string.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            seen = f"a lone surrogate at character {error.start}"
            raise self.error(key, "must be Unicode", seen, "Write it as UTF-8.") from error
        return text

    def filled(self, key: str) -> str:
        """A string that is more than white space."""
        text = self.string(key)
        if not text.strip():
            raise self.error(key, "must not be blank", _short(json.dumps(text)), "Drop the line.")
        return text

    def chat(self) -> Chat:
        """A conversation in which the assistant answers."""
        said = self.values["messages"]
        if not isinstance(said, list) or not all(isinstance(each, dict) for each in said):
            raise self.error("messages", "must be a list of objects", _short(json.dumps(said)), _like(Format.MESSAGES))
        inner = [_Fields(self.line, each, f"messages[{number}].") for number, each in enumerate(said)]
        messages = tuple(each.message() for each in inner)
        roles = [message.role for message in messages]
        for broken, rule in (
            (Role.ASSISTANT not in roles, "must hold a message of the assistant, which is what is trained on"),
            (roles[:1] == [Role.ASSISTANT], "must not begin with the assistant, whose messages are answers"),
        ):
            if broken:
                raise self.error("messages", rule, _short(f"the roles {', '.join(roles) or 'none'}"), "Drop the line.")
        return Chat(messages)

    def message(self) -> Message:
        """One message. Calls of tools are refused, since they would not be trained on."""
        role = self.string("role")
        if role not in {*Role}:
            rule = f"must be {', '.join(Role)}"
            raise self.error("role", rule, _short(json.dumps(role)), "Name the role as chat templates do.")
        if self.values.get("tool_calls"):
            seen = _short(json.dumps(self.values["tool_calls"]))
            raise self.error("tool_calls", "must be empty", seen, "Write the call into the content.")
        return Message(Role(role), self.filled("content") if role == Role.ASSISTANT else self.string("content"))

    def error(self, key: str, rule: str, value: str, way_out: str) -> RecordError:
        """About one value."""
        return RecordError(self.line, f"`{self.where}{key}` {rule}", value, way_out)


def _parse_object(line: int, raw: bytes) -> dict[str, Any]:
    try:
        record = json.loads(_decode(line, raw))
    except (ValueError, RecursionError) as error:
        raise RecordError(line, f"a line must be JSON ({error})", _short(repr(raw)), WAY_OUT) from error
    if not isinstance(record, dict):
        raise RecordError(line, "a line must be a JSON object", _short(json.dumps(record)), WAY_OUT)
    return record


def _decode(line: int, raw: bytes) -> str:
    """UTF-8, a byte order mark at the start ignored."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        seen = f"byte {raw[error.start]:#04x} at offset {error.start}"
        raise RecordError(line, "text must be UTF-8", seen, "Save the file as UTF-8.") from error


def _short(value: str, length: int = 60) -> str:
    return value if len(value) <= length else f"{value[: length - 1]}…"
