"""The form of a new job, made from the request's own model: its fields, defaults, ranges and what they mean."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from api.dashboard import words
from core.errors import Flaw
from core.specs import JobSpec
from core.tables import Json


class Kind(StrEnum):
    """What a person fills in."""

    TEXT = "text"
    NUMBER = "number"
    CHOICE = "choice"
    SWITCH = "switch"
    LIST = "list"
    PAIRS = "pairs"


@dataclass(frozen=True, slots=True)
class Input:
    """A field. `name` is its dotted path, `group` the part of the request that it belongs to."""

    name: str
    group: str
    label: str
    kind: Kind
    value: str
    help: str
    choices: tuple[str, ...]
    least: str
    most: str
    required: bool
    numeric: bool
    """Whether what is filled in may be a number: it may be one of few words, too."""


def inputs(given: Mapping[str, str], model: type[BaseModel] = JobSpec, before: str = "") -> Iterator[Input]:
    """All fields in the model's order, those of its parts included, filled with what was given or the default."""
    for name, field in model.model_fields.items():
        path = before + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from inputs(given, field.annotation, f"{path}.")
        else:
            yield _input(path, field, given.get(path))


def entered(form: Mapping[str, Any]) -> dict[str, str]:
    """What a form says, by field. A switch that is off says nothing in a form, and `false` here."""
    found = {}
    for field in inputs({}):
        text = form.get(field.name)
        if isinstance(text, str):
            found[field.name] = text.strip()
        elif field.kind is Kind.SWITCH:
            found[field.name] = "false"
    return found


def body(values: Mapping[str, str]) -> tuple[Json, list[Flaw]]:
    """The request that the values make; an empty one stands for the default. Flaws are lines that are no pairs."""
    made: Json = {}
    flaws: list[Flaw] = []
    for field in inputs({}):
        text = values.get(field.name, "")
        if not text:
            continue
        place = made
        *parts, last = field.name.split(".")
        for part in parts:
            place = place.setdefault(part, {})
        match field.kind:
            case Kind.PAIRS:
                lines = [line.strip() for line in text.splitlines() if line.strip()]
                flaws += [_no_pair(field.name, line) for line in lines if "=" not in line]
                place[last] = dict(line.split("=", 1) for line in lines if "=" in line)
            case Kind.LIST:
                place[last] = [part.strip() for part in text.replace("\n", ",").split(",") if part.strip()]
            case Kind.SWITCH:
                place[last] = {"true": True, "false": False}.get(text, text)
            case _:
                place[last] = _number(text) if field.numeric else text
    return made, flaws


def filled(spec: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """The values that a former request puts into the form."""
    out: dict[str, str] = {}
    pairs = {field.name for field in inputs({}) if field.kind is Kind.PAIRS}
    for name, value in spec.items():
        path = before + name
        if path in pairs:
            out[path] = "\n".join(f"{key}={text}" for key, text in value.items())
        elif isinstance(value, dict):
            out |= filled(value, f"{path}.")
        else:
            out[path] = _text(value)
    return out


def _input(path: str, field: FieldInfo, given: str | None) -> Input:
    bounds = [rule for rule in _rules(field) if isinstance(rule, Ge | Gt | Le | Lt)]
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    return Input(
        name=path,
        group=path.rpartition(".")[0].partition(".")[0],
        label=path.rpartition(".")[2].replace("_", " ").capitalize(),
        kind=_kind(field.annotation),
        value=_text(default) if given is None else given,
        help=(field.description or "").replace("`", ""),
        choices=tuple(_choices(field.annotation)),
        least=next((_bound(rule.ge) for rule in bounds if isinstance(rule, Ge)), ""),
        most=next((_bound(rule.le) for rule in bounds if isinstance(rule, Le)), ""),
        required=field.is_required(),
        numeric=_numeric(field.annotation),
    )


def _rules(field: FieldInfo) -> list[Any]:
    return list(field.metadata)


def _bound(value: Any) -> str:
    return words.count(value) if value == int(value) else f"{value:.6f}".rstrip("0")


def _kind(annotation: Any) -> Kind:
    origin = get_origin(annotation)
    if annotation is bool:
        return Kind.SWITCH
    if annotation in (int, float):
        return Kind.NUMBER
    if _choices(annotation):
        return Kind.CHOICE
    if origin is dict:
        return Kind.PAIRS
    if origin in (list, tuple):
        return Kind.LIST
    return Kind.TEXT


def _numeric(annotation: Any) -> bool:
    return annotation in (int, float) or any(_numeric(part) for part in get_args(annotation))


def _number(text: str) -> int | float | str:
    """The number that a text is; any other text stays, for the model to refuse."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _choices(annotation: Any) -> list[str]:
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [str(member.value) for member in annotation]
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return []


def _text(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case list() | tuple():
            return ", ".join(map(str, value))
        case dict():
            return "\n".join(f"{key}={text}" for key, text in value.items())
        case _:
            return str(value)


def _no_pair(name: str, line: str) -> Flaw:
    return Flaw(name, "must have one name=value a line", repr(line), "Write it as team=search, or take it out.")
